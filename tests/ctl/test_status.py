"""`status`, `volume probe` and the facts in `volume show`."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.api.running import GIVE, made
from tests.api.test_certificates_in_use import revoke
from tests.examples import ATTACHMENT, BLOCK, HOW, NVME_ATTACHMENT, PUBLICATION, VOLUME
from zfsilod.ctl.output import table
from zfsilod.engine import plans
from zfsilod.engine.step import HostStep
from zfsilod.model.errors import Unauthenticated
from zfsilod.model.host_facts import HIDDEN, SECTIONS
from zfsilod.model.records import Condition, Volume
from zfsilod.security import certificates
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ctl.shell import Daemon, Shell
    from zfsilod.storage.transaction import Transaction


@pytest.fixture
def broken(ctl: Shell) -> Iterator[str]:
    """A published volume whose zvol was destroyed by hand; it is restored afterwards."""
    ctl.ok("volume create broken 1G")
    ctl.ok("host add web --iqn iqn.2026-01.org.example:web")
    ctl.ok("volume publish broken web")
    facts = ctl.daemon.front.fixture.host.facts
    zvol = next(name for name in facts.snapshot() if name.endswith("/broken"))
    value = facts.snapshot()[zvol]
    facts.effect(zvol, None)
    yield "broken"
    facts.effect(zvol, value)
    ctl.ok("volume sync broken")
    ctl.ok("volume unpublish broken web")
    ctl.ok("volume delete broken --yes")
    ctl.ok("host delete web")


def test_a_healthy_host(ctl: Shell) -> None:
    ctl.ok("volume create counted 1G")
    shown = ctl.ok("status")
    assert "  Serves:        tank/zfsilo [" in shown
    assert " created" in shown
    assert "thin volumes provision 1.0 GiB (0%)" in shown
    assert "  Publications:  none; 1 registered host\n" in shown
    assert shown.endswith("\nnothing needs attention\n")
    status = ctl("status --json").json
    assert status["volumes"]["CREATED"] >= 1
    assert status["attention"] == []
    assert int(status["capacity"]["total_bytes"]) > 0
    ctl.ok("volume delete counted --yes")


def test_a_problem_comes_with_a_command(ctl: Shell, broken: str) -> None:
    ctl("volume sync --all")
    shown = ctl.ok("status")
    assert "1 problem to look at\n" in shown
    assert f"  {broken}: zvol tank/zfsilo/broken of volume broken is missing" in shown
    assert f"    try: zfsiloctl volume show {broken}" in shown


def test_every_fact_is_compared_with_the_records(ctl: Shell, broken: str) -> None:
    ran = ctl(f"volume probe {broken}")
    assert ran.code == 1
    assert "│  ├─ NO       zvol tank/zfsilo/broken exists\n" in ran.out
    assert "   ├─ ok       target has an ACL of iqn.2026-01.org.example:web\n" in ran.out
    facts = ctl(f"volume probe {broken} --json").json["facts"]
    truths = {fact["kind"]: fact["truth"] for fact in facts}
    assert truths["Zvol"] == "TRUTH_ABSENT"
    assert truths["Acl"] == "TRUTH_PRESENT"
    shown = ctl.ok(f"volume show {broken}")
    assert shown.startswith(f"volume {broken}: NEEDS ATTENTION, should be published to web\n")
    assert "NO       zvol tank/zfsilo/broken exists\n" in shown
    assert " ok " not in shown, "a fact that is as recorded is not worth a line"
    assert "   ├─ ok       target has an ACL of iqn.2026-01.org.example:web\n" in ctl.ok(
        f"volume show {broken} --facts"
    )


def test_narrow_terminals_and_colours(
    ctl: Shell, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("zfsilod.ctl.output.table.sys.stdout.isatty", lambda: True, raising=False)
    lines = ctl(f"volume probe {broken}").out.splitlines()
    assert max(map(len, lines)) <= 40
    assert any(line.endswith("…") for line in lines)
    monkeypatch.setenv("COLUMNS", "60")
    listed = ctl("volume list").out.splitlines()
    assert max(map(len, listed)) <= 60
    assert any(line.startswith(f"{broken} ") for line in listed)
    monkeypatch.setattr(table, "coloured", lambda _stream: True)
    assert f"{table.BAD}NO      {table.RESET}" in ctl(f"volume probe {broken}").out


def test_readers_see_the_status(ctl: Shell, daemon: Daemon) -> None:
    join = daemon.join_file("reader", "eve")
    assert "host take" in ctl.ok(f"-H {join} status")


def test_every_fact_of_a_volume_has_its_words() -> None:
    truth = (
        *plans.server_facts(VOLUME, [], HOW),
        *plans.server_facts(VOLUME, [PUBLICATION], HOW),
        *plans.client_facts(ATTACHMENT),
        *plans.client_facts(NVME_ATTACHMENT),
        *plans.client_facts(BLOCK),
    )
    named = {type(action.step).__name__ for action in truth if isinstance(action.step, HostStep)}
    assert named <= set(SECTIONS)


ALL_WELL = "nothing needs attention"


@pytest.fixture
def mounted(ctl: Shell) -> Iterator[str]:
    """A volume that is mounted at /srv/seen, as volumes.d wants it."""
    file = ctl.daemon.directory / "etc/volumes.d/seen.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    ctl.ok("volume create seen 1G --host take")
    file.write_text('server = "give"\nmount_path = "/srv/seen"\n')
    ctl.ok("up seen")
    yield "seen"
    ctl("down seen")
    file.unlink(missing_ok=True)
    ctl("volume unpublish seen --all")
    ctl("volume delete seen --yes")


def test_a_mount_that_was_removed_by_hand(ctl: Shell, mounted: str) -> None:
    assert ALL_WELL in ctl.ok("status")
    facts = ctl.daemon.front.fixture.host.facts
    mount = facts.get("mount:/srv/seen")
    facts.effect("mount:/srv/seen", None)
    shown = ctl.ok("status")
    assert f"  {mounted}: not so now: volume is mounted at /srv/seen" in shown
    assert "    try: zfsiloctl volume sync seen" in shown
    assert ("mounted" not in shown.splitlines()[2], "1 incomplete" in shown) == (True, True)
    facts.effect("mount:/srv/seen", mount)
    assert ALL_WELL in ctl.ok("status")


def test_one_cause_is_one_line(ctl: Shell, mounted: str) -> None:
    ctl.ok("volume create other 1G --host take")
    ctl.ok("volume connect other --server give")
    facts = ctl.daemon.front.fixture.host.facts
    sessions = {name: facts.get(name) for name in facts.snapshot() if name[:8] == "session:"}
    ctl.ok("status")
    for name, session in sessions.items():
        facts.effect(name, session | {"lost": True})
    shown = ctl.ok("status")
    for name, session in sessions.items():
        facts.effect(name, session)
    ctl.ok("volume disconnect other")
    ctl("volume unpublish other --all")
    ctl.ok("volume delete other --yes")
    line = rf"  other, {mounted}: the session with give at \S+:3260 is lost since .*; I/O waits"
    assert len(re.findall(line, shown)) == 1
    assert shown.endswith("    try: zfsiloctl doctor\n")


def test_a_healthy_volume_fits_one_screen(ctl: Shell, mounted: str) -> None:
    lines = ctl.ok(f"volume show {mounted}").splitlines()
    assert lines[0] == f"volume {mounted}: healthy, mounted at /srv/seen"
    assert len(lines) <= 25, "it is its server and its client"
    assert "  At boot:     attached by zfsilo-volume@seen.service" in lines
    assert lines[-1].endswith(
        f" facts are as recorded; 3 more are {HIDDEN}: zfsiloctl volume show {mounted} --facts"
    )
    shown = ctl.ok(f"volume show {mounted} --facts")
    assert "  ├─ hidden   disk has the ext4 filesystem\n" in shown
    assert "?" not in shown, "what the daemon never sees is no doubt"


def test_writes_that_are_not_synchronous_any_more(ctl: Shell) -> None:
    """After `zfs set sync=standard` a power failure loses writes that clients take for safe."""
    ctl.ok("volume create slow 1G")
    facts = ctl.daemon.front.fixture.host.facts
    zvol = facts.get("zvol:tank/zfsilo/slow")
    by_hand = zvol | {"properties": zvol["properties"] | {"sync": "standard"}}
    facts.effect("zvol:tank/zfsilo/slow", by_hand)
    assert "property sync is always" in ctl("status").out
    assert "NO       property sync is always" in ctl("volume probe slow").out
    ctl.ok("volume sync slow")
    assert facts.get("zvol:tank/zfsilo/slow") == zvol
    ctl.ok("volume update slow -o sync=standard")
    assert ALL_WELL in ctl.ok("status")
    ctl.ok("volume delete slow --yes")


def test_a_zvol_that_was_renamed(ctl: Shell) -> None:
    ctl.ok("volume create moved 1G")
    facts = ctl.daemon.front.fixture.host.facts
    zvol = facts.get("zvol:tank/zfsilo/moved")
    facts.effect("zvol:tank/zfsilo/moved", None)
    assert "  moved: zvol tank/zfsilo/moved of volume moved is missing" in ctl.ok("status")
    facts.effect("zvol:tank/zfsilo/moved", zvol)
    assert ALL_WELL in ctl.ok("status"), "the complaint goes with its cause"
    ctl.ok("volume delete moved --yes")


def test_a_wanted_volume_that_is_not_there(ctl: Shell) -> None:
    file = ctl.daemon.directory / "etc/volumes.d/wish.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('server = "give"\nmount_path = "/srv/wish"\n')
    shown = ctl.ok("status")
    assert "  wish: should be mounted at /srv/wish (volumes.d/wish.toml), is not connected" in shown
    assert "    try: systemctl status zfsilo-volume@wish.service" in shown
    assert ctl.fails(3, "volume show wish") == (
        f"zfsiloctl: wish should be mounted at /srv/wish, as {file} says, and is not connected: "
        "systemctl status zfsilo-volume@wish.service\n"
    )
    file.write_text("server = ")
    assert "etc/volumes.d/wish.toml: " in ctl.ok("status")
    assert "there is no volume wish" in ctl.fails(3, "volume show wish")
    file.unlink()
    assert ALL_WELL in ctl.ok("status")


@pytest.mark.parametrize(
    ("state", "command"), [("SUSPENDED", "zpool clear tank"), ("EXPORTED", "zpool import tank")]
)
def test_a_pool_that_cannot_be_used_is_one_problem(ctl: Shell, state: str, command: str) -> None:
    ctl.ok("volume create kept 1G")
    facts = ctl.daemon.front.fixture.host.facts
    facts.effect("pool:tank", state)
    shown = ctl.ok("status")
    assert "1 problem to look at\n  this host: the pool tank is " in shown
    assert command in shown
    facts.effect("pool:tank", None)
    assert ALL_WELL in ctl.ok("status")
    ctl.ok("volume delete kept --yes")


def forget(name: str, txn: Transaction) -> None:
    txn.drop("volume", name)


def test_a_lost_store(ctl: Shell) -> None:
    for name in ("lost1", "lost2"):
        ctl.ok(f"volume create {name} 1G")
        ctl.daemon.front.write(partial(forget, name))
    shown = ctl.ok("status")
    assert "have no record on this host: tank/zfsilo/lost1, tank/zfsilo/lost2" in shown
    assert "    try: zfsiloctl adopt --all --dry-run" in shown
    ctl.ok("adopt --all")
    assert ALL_WELL in ctl.ok("status")
    for name in ("lost1", "lost2"):
        ctl.ok(f"volume delete {name} --yes")


def test_an_expired_certificate_of_this_host(ctl: Shell) -> None:
    files = ctl.daemon.front.tls.files
    ended = certificates.issue(made("ca"), GIVE, ("localhost",), days=0)
    files.write_host(ended)
    try:
        shown = ctl.ok("status")
    finally:
        files.write_host(made("give"))
    assert "  this host: the certificate of this host has expired" in shown
    assert "    try: zfsiloctl pki renew" in shown


@pytest.mark.parametrize("kind", ["revoked", "expired"])
def test_a_server_that_refuses_this_host(ctl: Shell, mounted: str, kind: str) -> None:
    daemon, front = ctl.daemon, ctl.daemon.front
    before = front.service.context.servers
    access = front.certified("host", "take", days=0 if kind == "expired" else 1)
    servers = StorageServers({"give": access}.get)
    if kind == "revoked":
        revoke(front, access)

    async def ask() -> None:
        front.service.context.servers = servers
        with pytest.raises(Unauthenticated):
            await servers.publications("give")

    daemon.wait(ask())
    shown = ctl.ok("status")
    front.service.context.servers = before
    daemon.wait(servers.close())
    assert mounted not in shown
    assert "    try: zfsiloctl doctor" in shown
    assert {"revoked": "server give: ", "expired": "for server give has expired"}[kind] in shown


def test_an_operation_that_ends_well_clears_the_complaint(ctl: Shell, mounted: str) -> None:
    front = ctl.daemon.front
    uid = front.read(lambda txn: txn.get(Volume, mounted)).uid
    cured = Condition(id=uid, sentences=("no login to it",))
    front.write(lambda txn: txn.put(cured))
    assert ALL_WELL in ctl.ok("status"), "looked at now, and nothing differs"
    front.write(lambda txn: txn.put(cured))
    ctl.ok("volume sync seen")
    assert front.read(lambda txn: txn.get(Condition, uid)) is None


def test_a_look_keeps_the_reason_why_a_repair_failed(ctl: Shell, mounted: str) -> None:
    front = ctl.daemon.front
    uid = front.read(lambda txn: txn.get(Volume, mounted)).uid
    front.fixture.host.facts.effect("mount:/srv/seen", None)
    front.write(lambda txn: txn.put(Condition(id=uid, sentences=("no login to it",))))
    assert "  seen: no login to it" in ctl.ok("status")

"""`status`, `volume probe` and the facts in `volume show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import ATTACHMENT, BLOCK, HOW, PUBLICATION, VOLUME
from zfsilod.ctl.output import table
from zfsilod.ctl.output.facts import SECTIONS
from zfsilod.engine import plans
from zfsilod.engine.step import HostStep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ctl.shell import Daemon, Shell


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
    assert "├─ export\n" in ctl.ok(f"volume show {broken}")


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
        *plans.client_facts(BLOCK),
    )
    named = {type(action.step).__name__ for action in truth if isinstance(action.step, HostStep)}
    assert named <= set(SECTIONS)

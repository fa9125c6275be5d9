"""The daemon under a real systemd, D-Bus and polkit; only the host below it is made up."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.systemd.install import install
from tests.systemd.namespace import Result, SystemdHost
from zfsilod.api.dbus.contract import unescape
from zfsilod.host.fake import VOLATILE, Facts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

DROP_IN = """
[Service]
ExecStart=
ExecStart=/usr/bin/zfsilod --simulate-host
"""
CONFIG = """
[daemon]
host_id = "give"
"""
NOTHING = "org.zfsilo1 /org/zfsilo1 org.zfsilo1.Manager"
DEADLINE_S = 60
REVEAL = """
import sys
sys.path.insert(0, "/usr/lib/zfsilo")
from pathlib import Path
from zfsilod.storage.store import Store
found = Store(Path("/var/lib/zfsilo")).chap(sys.argv[1])
print(found.password.reveal(), found.mutual_password.reveal())
"""
# Starts units, and asks in the same breath which ones are live.
STARTED = """
import asyncio, sys
sys.path.insert(0, "/usr/lib/zfsilo")
from zfsilod.systemd.launcher import SystemdLauncher
from zfsilod.model.records import Operation
from zfsilod.model.ulid import new_ulid

async def missing():
    launcher = await SystemdLauncher.connect(worker="/usr/local/lib/worker", timeout_s=20)
    for _time in range(20):
        operation = Operation(
            id=new_ulid(), kind="", subject="", title="", actions=(), claims=(), commit=()
        )
        _started, live = await asyncio.gather(launcher.start(operation), launcher.running())
        if operation.unit not in live:
            print(operation.unit)

asyncio.run(missing())
"""
SPOKEN = (
    "volume list --json", "volume show data", "volume show data --json", "volume probe data --json",
    "volume publish data take", "operation list --json", "operation show {}",
    "operation show {} --json", "host show take --json", "orphan list --json", "status --json",
    "audit", "audit --json", "doctor", "info --json", "rotate-secrets data --dry-run --json",
    "-v volume show none", "capacity",
)  # fmt: skip
EXPOSURE = 1.5  # at most


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine on which zfsilod runs for real over a simulated host."""
    machine = SystemdHost()
    install(machine)
    with machine:
        machine.write("/etc/systemd/system/zfsilod.service.d/simulate.conf", DROP_IN)
        machine.write("/etc/zfsilo/zfsilod.toml", CONFIG)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", "zfsilod.socket", "zfsilod.service")
        ctl(machine, "host", "add", "take", "--iqn", "iqn.2024-01.lab.take:host")
        yield machine


@pytest.fixture
def secret_places() -> Collection[str]:
    """No file may hold a CHAP secret in clear; the store holds them sealed."""
    return ()


def ctl(machine: SystemdHost, *words: str, check: bool = True) -> Result:
    """Run zfsiloctl in the machine."""
    return machine.run("zfsiloctl", *words, check=check, timeout_s=DEADLINE_S)


def facts(machine: SystemdHost) -> dict[str, Any]:
    """Return all facts of the made-up host."""
    return Facts(machine.root / "var/lib/zfsilo/facts.json").snapshot()


def light_fuse(machine: SystemdHost, effects: int, *, how: str) -> None:
    """Let the n-th effect from now fail, or kill the worker that makes it."""
    fuse = Facts(machine.root / "var/lib/zfsilo/facts.json")
    fuse.light_fuse(effects, when="after", how=how)


def operations(machine: SystemdHost) -> list[dict[str, Any]]:
    """Return all operations, oldest first."""
    found: list[dict[str, Any]] = json.loads(ctl(machine, "operation", "list", "--json").stdout)[
        "operations"
    ]
    return found


@pytest.fixture(autouse=True)
def clean(sd: SystemdHost) -> Iterator[None]:
    """Give every test a host without volumes, and take care that it leaves one."""
    yield
    for each in json.loads(ctl(sd, "volume", "list", "--json").stdout)["volumes"]:
        ctl(sd, "volume", "unpublish", each["id"], "--all")
        ctl(sd, "volume", "delete", each["id"], "--yes")
    assert facts(sd) == {}


def test_units_are_as_systemd_wants_them(sd: SystemdHost) -> None:
    sockets = [f"zfsilod{name}.socket" for name in ("", "-tcp", "-csi", "-metrics")]
    units = ["zfsilod.service", *sockets, "zfsilo.slice"]
    units += ["zfsilo-renew.service", "zfsilo-renew.timer"]
    templates = ["zfsilo-rollback@x.service", "zfsilo-volume@x.service"]
    paths = [f"/usr/lib/systemd/system/{name}" for name in (*units, *templates)]
    found = sd.run("systemd-analyze", "verify", "--man=no", *paths)
    assert found.stdout + found.stderr == ""


def test_a_socket_that_is_enabled_comes_in_with_a_restart(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    for socket in ("zfsilod-metrics.socket", "zfsilod-tcp.socket"):
        sd.run("systemctl", "enable", socket)
    sd.run("systemctl", "restart", "zfsilod.service")
    try:
        assert sd.run("systemctl", "is-active", "zfsilod-tcp.socket").stdout == "active\n"
        scrape = (
            "import socket; s = socket.socket(socket.AF_UNIX)"
            "; s.connect('/run/zfsilo/metrics.sock')"
            "; s.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())"
        )
        text = sd.run("/usr/bin/python3", "-c", scrape).stdout
        assert 'zfsilo_volumes{state="created"} 1.0' in text
    finally:
        for socket in ("zfsilod-metrics.socket", "zfsilod-tcp.socket"):
            sd.run("systemctl", "disable", "--now", socket, check=False)


def test_ladder_by_ctl_and_busctl(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    made = sd.run("busctl", "call", *NOTHING.split(), "GetVolume", "s", "data").stdout
    assert made.strip() == 'o "/org/zfsilo1/volume/data"'
    shown = sd.run(
        "busctl", "get-property", "org.zfsilo1", "/org/zfsilo1/volume/data",
        "org.zfsilo1.Volume", "State",
    )  # fmt: skip
    assert shown.stdout.strip() == 's "CREATED"'
    published = sd.run(
        "busctl", "call", "org.zfsilo1", "/org/zfsilo1/volume/data", "org.zfsilo1.Volume",
        "Publish", "sa{sv}", "take", "0",
    )  # fmt: skip
    operation = unescape(published.stdout.split('"')[1].rpartition("/")[2])
    ctl(sd, "operation", "wait", operation)
    assert {name.partition(":")[0] for name in facts(sd)} == {
        "zvol", "backstore", "target", "lun", "portals", "enabled", "acl", "mapped"
    }  # fmt: skip


def test_an_operation_is_a_unit_with_a_description(sd: SystemdHost) -> None:
    since = time.time()
    ctl(sd, "volume", "create", "data", "1G")
    ended = operations(sd)[-1]
    journal = sd.journal(since=since)
    assert f"zfsilo-op-{ended['name'].rpartition('/')[2]}.service" in journal
    assert "zfsilo: create data" in journal


def test_an_operation_is_live_as_soon_as_it_is_started(sd: SystemdHost) -> None:
    sd.write("/usr/local/lib/worker", "#!/bin/sh\nexec sleep 1\n", 0o755)
    assert sd.run("python3", "-I", "-c", STARTED, timeout_s=DEADLINE_S).stdout == ""


@pytest.mark.parametrize("how", ["error", "kill"])
def test_a_failed_operation_is_rolled_back_by_its_unit(sd: SystemdHost, how: str) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    before, since = facts(sd), time.time()
    light_fuse(sd, 6, how=how)
    refused = ctl(sd, "volume", "publish", "data", "take", check=False)
    assert refused.rc != 0
    assert facts(sd) == before
    ended = operations(sd)[-1]
    assert ended["state"] == "OPERATION_STATE_ROLLED_BACK"
    assert f"zfsilo-rollback@{ended['name'].rpartition('/')[2]}.service" in sd.journal(since=since)
    assert refused.stderr.startswith("zfsiloctl: ")


def test_the_daemon_killed_in_mid_operation_goes_on(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    with sd.start("zfsiloctl", "volume", "publish", "data", "take"):
        sd.run("systemctl", "kill", "--signal=KILL", "zfsilod.service")
    ctl(sd, "volume", "publish", "data", "take")
    assert sum(name.startswith("acl:") for name in facts(sd)) == 1


def test_after_a_reboot_the_exports_are_back(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    ctl(sd, "volume", "publish", "data", "take")
    before = facts(sd)
    for act in (sd.reboot, sd.power_cut):
        Facts(sd.root / "var/lib/zfsilo/facts.json").reboot()
        assert {name.partition(":")[0] for name in facts(sd)}.isdisjoint(VOLATILE)
        act()
        _until(lambda: facts(sd) == before, "the exports came back")


def _until(so: Any, what: str) -> None:
    """Wait for what only the machine's own work brings about."""
    end = time.monotonic() + DEADLINE_S
    while not so():
        assert time.monotonic() < end, f"not in {DEADLINE_S} s: {what}"
        time.sleep(0.05)


def test_changes_are_audited(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    ctl(sd, "volume", "publish", "data", "nobody", check=False)
    sd.run("journalctl", "--sync")
    found = json.loads(ctl(sd, "audit", "--json").stdout)["records"]
    made = [each for each in found if each["subject"] == "volumes/data"]
    assert (made[-2]["action"], made[-2]["outcome"]) == ("create", "DONE")
    assert (made[-1]["action"], made[-1]["outcome"]) == ("PublishVolume", "NOT_FOUND")
    assert made[-1]["caller"] == "uid 0 (unix)"


def test_d_bus_activates_the_daemon(sd: SystemdHost) -> None:
    sd.run("systemctl", "stop", "zfsilod.service")
    answer = sd.run("busctl", "call", *NOTHING.split(), "GetCapacity", "s", "")
    assert answer.stdout.startswith("tt ")


def test_the_socket_activates_the_daemon(sd: SystemdHost) -> None:
    sd.run("systemctl", "stop", "zfsilod.service")
    assert "Version" in ctl(sd, "info").stdout
    assert sd.run("systemctl", "is-active", "zfsilod.service").stdout.strip() == "active"


def test_polkit_decides_about_others(sd: SystemdHost) -> None:
    """The real one, with the actions and the rule that are installed."""
    ask = "pkcheck --action-id org.zfsilo1.destroy --process $$"
    assert sd.run("sh", "-c", ask).rc == 0
    refused = sd.run("sh", "-c", f"{ask}; exit $?", uid=1000, check=False)
    assert refused.rc != 0
    assert "requires authentication" in refused.stderr
    sd.run("groupadd", "--force", "zfsilo")
    sd.run("useradd", "--groups", "zfsilo", "keeper")
    call = f"busctl call {NOTHING} GetCapacity s ''"
    allowed = sd.run("runuser", "-u", "keeper", "--", "sh", "-c", call)
    assert allowed.stdout.startswith("tt ")
    sd.run("userdel", "keeper")


def test_others_than_root_are_refused(sd: SystemdHost) -> None:
    bus = sd.run("busctl", "call", *NOTHING.split(), "GetCapacity", "s", "", uid=1000, check=False)
    assert bus.rc != 0
    assert "org.zfsilo1.read is not for uid 1000" in bus.stderr
    socket = sd.run("zfsiloctl", "info", uid=1000, check=False)
    assert socket.rc == 6
    assert "Traceback" not in socket.stderr


def test_a_volume_unit_goes_up_and_down(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G", "--host", "take")
    sd.run("systemctl", "start", "zfsilo-volume@data.service")
    assert any(name.startswith("acl:") for name in facts(sd))
    sd.run("systemctl", "stop", "zfsilo-volume@data.service")
    assert {name.partition(":")[0] for name in facts(sd)} == {"zvol"}


def test_a_volume_unit_follows_its_volume_down(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G", "--host", "take")
    sd.run("systemctl", "start", "zfsilo-volume@data.service")
    ctl(sd, "volume", "unpublish", "data", "--all")

    def stopped() -> bool:
        state = sd.run("systemctl", "is-active", "zfsilo-volume@data.service", check=False)
        return state.stdout.strip() == "inactive"

    _until(stopped, "the unit followed")


def test_a_wrong_configuration_is_refused_in_one_sentence(sd: SystemdHost) -> None:
    sd.write("/etc/zfsilo/zfsilod.toml.d/wrong.toml", "[server]\nrooot = 'tank'\n")
    refused = sd.run("zfsilod", "--check-config", check=False)
    sd.run("rm", "/etc/zfsilo/zfsilod.toml.d/wrong.toml")
    assert refused.rc == 78
    assert refused.stderr.count("\n") == 1
    assert "wrong.toml: [server] has no key rooot" in refused.stderr


def test_what_is_said_and_what_is_dumped_shows_no_secret(
    sd: SystemdHost, secrets: list[bytes]
) -> None:
    ctl(sd, "volume", "create", "data", "1G", "--host", "take")
    ctl(sd, "volume", "publish", "data", "take")
    planted = sd.run("/usr/bin/python3", "-I", "-c", REVEAL, "data/take").stdout
    ctl(sd, "rotate-secrets", "data")
    planted += sd.run("/usr/bin/python3", "-I", "-c", REVEAL, "data/take#1").stdout
    secrets += [each.encode() for each in planted.split()]
    assert len(set(secrets)) == 4
    last = operations(sd)[-1]["name"].rpartition("/")[2]
    spoken = [ctl(sd, *words.format(last).split(), check=False) for words in SPOKEN]
    objects = ("org.zfsilo1", "/org/zfsilo1", "org.freedesktop.DBus.ObjectManager")
    spoken.append(sd.run("busctl", "call", *objects, "GetManagedObjects"))
    said = "".join(each.stdout + each.stderr for each in spoken)
    assert "data" in said
    assert not [number for number, each in enumerate(secrets) if each.decode() in said]
    limit = sd.run("systemctl", "show", "-p", "LimitCORE", "zfsilod.service").stdout
    assert limit == "LimitCORE=0\n", "a core file would hold what is unsealed at the time"


def test_the_key_may_be_one_that_systemd_keeps(sd: SystemdHost) -> None:
    encrypt = "systemd-creds encrypt --name=zfsilo.key - /etc/credstore.encrypted/zfsilo.key"
    sd.run("mkdir", "-p", "/etc/credstore.encrypted")
    sd.run("sh", "-c", f"head -c 32 /dev/urandom | {encrypt}")
    sd.run("rm", "-f", "/var/lib/zfsilo/key")
    sd.run("systemctl", "restart", "zfsilod.service")
    try:
        ctl(sd, "volume", "create", "data", "1G")
        ctl(sd, "volume", "publish", "data", "take")
        ctl(sd, "rotate-secrets", "data")
        light_fuse(sd, 2, how="kill")
        assert ctl(sd, "rotate-secrets", "data", check=False).rc != 0
        assert operations(sd)[-1]["state"].endswith("ROLLED_BACK")
        ctl(sd, "volume", "sync", "data")
        assert sd.run("ls", "/var/lib/zfsilo/key", check=False).rc != 0
        ctl(sd, "volume", "unpublish", "data", "take")
    finally:
        sd.run("rm", "/etc/credstore.encrypted/zfsilo.key")
        sd.run("systemctl", "restart", "zfsilod.service")


def test_the_sandbox_holds(sd: SystemdHost) -> None:
    found = sd.run("systemd-analyze", "security", "--json=short", "zfsilod.service")
    said = sd.run("systemd-analyze", "security", "zfsilod.service").stdout.splitlines()[-1]
    print(said)
    assert float(said.rpartition("service: ")[2].split()[0]) <= EXPOSURE
    assert json.loads(found.stdout)
    capabilities = sd.run("systemctl", "show", "-p", "CapabilityBoundingSet", "zfsilod.service")
    assert capabilities.stdout.strip() == "CapabilityBoundingSet="

"""Operations and volume units under a real systemd, from request to rollback and reboot."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.systemd.simulated import (
    DEADLINE_S,
    FACTS,
    MANAGER,
    ctl,
    delete_volumes,
    facts,
    light_fuse,
    operations,
    simulated_host,
    wait_until,
)
from tests.worker_rig import not_sticky
from zfsilod.api.dbus.contract import unescape
from zfsilod.host.fake import VOLATILE, Facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

TROUBLESHOOTING = Path(__file__).parents[2] / "docs/troubleshooting.md"
DONE = "OPERATION_STATE_DONE"
VOLUME = ("org.zfsilo1", "/org/zfsilo1/volume/data", "org.zfsilo1.Volume")
# Prints both passwords of a publication.
REVEAL = """
import sys
sys.path.insert(0, "/usr/lib/zfsilo")
from pathlib import Path
from zfsilod.storage.store import Store
chap = Store(Path("/var/lib/zfsilo")).chap(sys.argv[1])
print(chap.password.reveal(), chap.mutual_password.reveal())
"""
# Starts units and lists the live ones concurrently; prints units that are missing in the list.
START_AND_LIST = """
import asyncio, sys
sys.path.insert(0, "/usr/lib/zfsilo")
from zfsilod.systemd.launcher import SystemdLauncher
from zfsilod.model.records import Operation
from zfsilod.model.ulid import new_ulid

async def main():
    launcher = await SystemdLauncher.connect(worker="/usr/local/lib/worker", timeout_s=20)
    for _ in range(20):
        operation = Operation(
            id=new_ulid(), kind="", subject="", title="", actions=(), claims=(), commit=()
        )
        _started, live = await asyncio.gather(launcher.start(operation), launcher.running())
        if operation.unit not in live:
            print(operation.unit)

asyncio.run(main())
"""
COMMANDS = """\
volume list --json
volume show data
volume show data --json
volume probe data --json
volume publish data take
operation list --json
operation show {}
operation show {} --json
host show take --json
orphan list --json
status --json
audit
audit --json
doctor
info --json
rotate-secrets data --dry-run --json
-v volume show none
capacity
"""


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine whose zfsilod has a simulated host."""
    with simulated_host() as machine:
        yield machine


@pytest.fixture(autouse=True)
def no_volumes(sd: SystemdHost) -> Iterator[None]:
    """Delete the volumes after each test."""
    yield
    delete_volumes(sd)


def test_create_and_publish_by_ctl_and_busctl(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    path = sd.run("busctl", "call", *MANAGER, "GetVolume", "s", "data").stdout
    assert path.strip() == 'o "/org/zfsilo1/volume/data"'
    state = sd.run("busctl", "get-property", *VOLUME, "State").stdout
    assert state.strip() == 's "CREATED"'
    published = sd.run("busctl", "call", *VOLUME, "Publish", "sa{sv}", "take", "0")
    operation = unescape(published.stdout.split('"')[1].rpartition("/")[2])
    ctl(sd, "operation", "wait", operation)
    exported = {"backstore", "target", "lun", "portals", "enabled", "acl", "mapped"}
    assert {name.partition(":")[0] for name in facts(sd)} == {"zvol", *exported}


def test_an_operation_is_a_unit_with_a_description(sd: SystemdHost) -> None:
    since = time.time()
    ctl(sd, "volume", "create", "data", "1G")
    newest = operations(sd)[-1]
    journal = sd.journal(since=since)
    assert f"zfsilo-op-{newest['name'].rpartition('/')[2]}.service" in journal
    assert "zfsilo: create data" in journal


def test_an_operation_is_live_as_soon_as_it_is_started(sd: SystemdHost) -> None:
    sd.write("/usr/local/lib/worker", "#!/bin/sh\nexec sleep 1\n", 0o755)
    assert sd.run("python3", "-I", "-c", START_AND_LIST, timeout_s=DEADLINE_S).stdout == ""


@pytest.mark.parametrize("how", ["error", "kill"])
def test_a_failed_operation_is_rolled_back_by_its_unit(sd: SystemdHost, how: str) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    before, since = facts(sd), time.time()
    light_fuse(sd, 6, how=how)
    refused = ctl(sd, "volume", "publish", "data", "take", check=False)
    assert refused.rc != 0
    assert not_sticky(facts(sd)) == not_sticky(before)
    newest = operations(sd)[-1]
    assert newest["state"] == "OPERATION_STATE_ROLLED_BACK"
    assert f"zfsilo-rollback@{newest['name'].rpartition('/')[2]}.service" in sd.journal(since=since)
    assert refused.stderr.startswith("zfsiloctl: ")


def test_the_documented_journal_command_shows_an_operation(sd: SystemdHost) -> None:
    match = re.search(r"journalctl (ZFSILO_VOLUME=data)\n", TROUBLESHOOTING.read_text())
    assert match is not None
    ctl(sd, "volume", "create", "data", "1G")

    def lines() -> str:
        return sd.run("journalctl", "--output=cat", match[1], check=False).stdout

    wait_until(lambda: "create volumes/data: done" in lines(), "the audit record is in the journal")
    light_fuse(sd, 3, how="error")
    ctl(sd, "volume", "publish", "data", "take", check=False)
    wait_until(lambda: "fuse" in lines(), "the line of the worker is in the journal")


@pytest.mark.parametrize("how", ["", "error", "kill"])
def test_changes_in_flight_share_units(sd: SystemdHost, how: str) -> None:
    """Each has its own outcome, and its name in the journal of the unit."""
    since = time.time()
    names = [f"v{number:02}" for number in range(32)]
    if how:
        # A rollback completes what was killed after its last effect.
        light_fuse(sd, 20, how=how, when="before")
    with ExitStack() as clients:
        started = [
            clients.enter_context(sd.start("zfsiloctl", "volume", "create", name, "1G"))
            for name in names
        ]
        for client in started:
            client.communicate(timeout=DEADLINE_S)
    assert re.search(r"zfsilo: create v\d+ and \d more", sd.journal(since=since))
    created = {name for name, client in zip(names, started, strict=True) if not client.returncode}
    assert {name.rpartition("/")[2] for name in facts(sd)} == created
    assert (created == set(names)) == (how == "")
    outcomes = {one["title"].split()[1]: one for one in operations(sd)[-len(names) :]}
    assert {name for name, one in outcomes.items() if one["state"] == DONE} == created
    if how == "error":
        (failed,) = set(names) - created
        match = f"ZFSILO_OPERATION={outcomes[failed]['name'].rpartition('/')[2]}"
        assert f"create {failed}: " in sd.run("journalctl", "--output=cat", match).stdout


def test_a_daemon_killed_during_an_operation_resumes(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    with sd.start("zfsiloctl", "volume", "publish", "data", "take"):
        sd.run("systemctl", "kill", "--signal=KILL", "zfsilod.service")
    ctl(sd, "volume", "publish", "data", "take")
    assert sum(name.startswith("acl:") for name in facts(sd)) == 1


def test_exports_are_restored_after_a_reboot(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    ctl(sd, "volume", "publish", "data", "take")
    before = facts(sd)
    for restart in (sd.reboot, sd.power_cut):
        Facts(sd.root / FACTS).reboot()
        assert {name.partition(":")[0] for name in facts(sd)}.isdisjoint(VOLATILE)
        restart()
        wait_until(lambda: facts(sd) == before, "all exports are restored")


def test_a_volume_unit_publishes_and_unpublishes(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G", "--host", "take")
    sd.run("systemctl", "start", "zfsilo-volume@data.service")
    assert any(name.startswith("acl:") for name in facts(sd))
    sd.run("systemctl", "stop", "zfsilo-volume@data.service")
    assert {name.partition(":")[0] for name in facts(sd)} == {"zvol"}


def test_a_volume_unit_stops_when_its_volume_is_unpublished(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G", "--host", "take")
    sd.run("systemctl", "start", "zfsilo-volume@data.service")
    ctl(sd, "volume", "unpublish", "data", "--all")

    def stopped() -> bool:
        state = sd.run("systemctl", "is-active", "zfsilo-volume@data.service", check=False)
        return state.stdout.strip() == "inactive"

    wait_until(stopped, "the unit is inactive")


def test_no_output_property_or_core_file_shows_a_secret(
    sd: SystemdHost, secrets: list[bytes]
) -> None:
    ctl(sd, "volume", "create", "data", "1G", "--host", "take")
    ctl(sd, "volume", "publish", "data", "take")
    planted = sd.run("/usr/bin/python3", "-I", "-c", REVEAL, "data/take").stdout
    ctl(sd, "rotate-secrets", "data")
    planted += sd.run("/usr/bin/python3", "-I", "-c", REVEAL, "data/take#1").stdout
    secrets += [password.encode() for password in planted.split()]
    assert len(set(secrets)) == 4
    last = operations(sd)[-1]["name"].rpartition("/")[2]
    commands = COMMANDS.format(last, last).splitlines()
    results = [ctl(sd, *command.split(), check=False) for command in commands]
    objects = ("org.zfsilo1", "/org/zfsilo1", "org.freedesktop.DBus.ObjectManager")
    results.append(sd.run("busctl", "call", *objects, "GetManagedObjects"))
    output = "".join(result.stdout + result.stderr for result in results)
    assert "data" in output
    assert not [n for n, password in enumerate(secrets) if password.decode() in output]
    limit = sd.run("systemctl", "show", "-p", "LimitCORE", "zfsilod.service").stdout
    assert limit == "LimitCORE=0\n", "a core file would contain unsealed secrets"

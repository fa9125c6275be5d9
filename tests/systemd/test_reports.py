"""Reports to a server from within the unit of a worker, under a real systemd.

The machine is its own server. A drop-in holds the unit of a report up while a file exists, so that
the worker of the stage waits for it.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.systemd.simulated import (
    FACTS,
    ctl,
    facts,
    operations,
    simulated_host,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.inner_process import InnerProcess
    from tests.systemd.namespace import SystemdHost

JOIN = "/root/take.join"
IQN = f"iqn.2026-01.org.zfsilo:simulated.{hashlib.sha256(f'/{FACTS}'.encode()).hexdigest()[:12]}"
HOLD = "/run/hold-reports"
HELD = "/run/held-reports"
SCRIPT = f"""#!/bin/sh
case $(systemctl show -P Description "$1") in
*"mark the filesystem"*)
    while [ -e {HOLD} ]; do : >{HELD}; sleep 0.1; done ;;
esac
"""
DROP_IN = "[Service]\nExecStartPre=+/usr/local/bin/hold-reports %n\n"
SOCKET = "/var/lib/zfsilo/op/daemon.sock"  # of a simulated host


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine that is a server, and its own client."""
    with simulated_host() as machine:
        ctl(machine, "pki", "init", "--name", "localhost")
        ctl(machine, "pki", "issue", "host", "take", "--address", "127.0.0.1", "--file", JOIN)
        machine.run("systemctl", "enable", "--now", "zfsilod-tcp.socket")
        ctl(machine, "join", JOIN, "--iqn", IQN)
        machine.write("/usr/local/bin/hold-reports", SCRIPT)
        machine.run("chmod", "755", "/usr/local/bin/hold-reports")
        machine.write("/etc/systemd/system/zfsilo-op-.service.d/hold.conf", DROP_IN)
        machine.run("systemctl", "daemon-reload")
        yield machine


@pytest.fixture(autouse=True)
def connected(sd: SystemdHost) -> Iterator[None]:
    """A volume that is connected, and has no filesystem yet."""
    ctl(sd, "volume", "create", "data", "1G", "--host", "take")
    ctl(sd, "volume", "connect", "data", "--server", "give")
    yield
    sd.run("rm", "-f", HOLD, HELD)
    ctl(sd, "down", "data")
    ctl(sd, "volume", "unpublish", "data", "--all")
    ctl(sd, "volume", "delete", "data", "--yes")
    assert not without_contents(sd)


def without_contents(sd: SystemdHost) -> set[str]:
    """Return the names of facts, without what was written to disks: it stays on a fake host."""
    return {name for name in facts(sd) if not name.startswith("content:")}


def newest(sd: SystemdHost, kind: str) -> dict[str, Any]:
    return [operation for operation in operations(sd) if operation["kind"] == kind][-1]


def unit_of(operation: dict[str, Any]) -> str:
    return f"zfsilo-op-{operation['name'].rpartition('/')[2]}.service"


def starts(sd: SystemdHost, operation: dict[str, Any], since: float) -> int:
    return sd.journal(since=since).count(f"Starting {unit_of(operation)}")


@contextmanager
def stage_that_waits(sd: SystemdHost) -> Iterator[InnerProcess]:
    """Stage the volume, and go on when its worker waits for a report."""
    sd.run("touch", HOLD)
    with sd.start("zfsiloctl", "volume", "stage", "data") as staging:
        wait_until(lambda: sd.run("test", "-e", HELD, check=False).rc == 0, "a report is held up")
        yield staging


def test_the_first_stage_is_one_unit(sd: SystemdHost) -> None:
    since = time.time()
    ctl(sd, "volume", "stage", "data")
    assert starts(sd, newest(sd, "stage"), since) == 1
    assert starts(sd, newest(sd, "report"), since) == 1
    assert sd.run("stat", "-c", "%U %a %F", SOCKET).stdout == "root 600 socket\n"


def test_a_worker_that_is_killed_while_it_waits_is_rolled_back(sd: SystemdHost) -> None:
    before = without_contents(sd)
    with stage_that_waits(sd):
        stage = newest(sd, "stage")
        assert stage["state"] == "OPERATION_STATE_RUNNING"
        sd.run("systemctl", "kill", "--signal=KILL", unit_of(stage))
        wait_until(
            lambda: newest(sd, "stage")["state"] == "OPERATION_STATE_ROLLED_BACK",
            "the stage is rolled back",
        )
        sd.run("rm", HOLD)
    wait_until(
        lambda: newest(sd, "report")["state"] == "OPERATION_STATE_DONE", "the report is done"
    )
    assert without_contents(sd) == before
    ctl(sd, "volume", "stage", "data")


def test_a_daemon_that_restarts_meanwhile_resumes(sd: SystemdHost) -> None:
    since = time.time()
    with stage_that_waits(sd):
        stage = newest(sd, "stage")
        sd.run("systemctl", "kill", "--signal=KILL", "zfsilod.service")
        wait_until(lambda: starts(sd, stage, since) == 1, "the journal has the first unit")
        sd.run("rm", HOLD)
    wait_until(lambda: newest(sd, "stage")["state"] == "OPERATION_STATE_DONE", "the stage is done")
    assert newest(sd, "stage")["name"] == stage["name"]
    assert starts(sd, stage, since) == 2
    assert json.loads(ctl(sd, "volume", "show", "data", "--json").stdout)


def test_cancelling_stops_the_worker_that_waits(sd: SystemdHost) -> None:
    with stage_that_waits(sd):
        stage = newest(sd, "stage")
        ctl(sd, "operation", "cancel", stage["name"].rpartition("/")[2], check=False)
        wait_until(
            lambda: newest(sd, "stage")["state"] == "OPERATION_STATE_ROLLED_BACK",
            "the stage is rolled back",
        )
        sd.run("rm", HOLD)

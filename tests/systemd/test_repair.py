"""Rollbacks that fail under a real systemd: each undo step once, and one for good."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.crash.units import CREATE, PUBLISH, Host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

EFFECTS = 10  # of a publication
LEAST_UNDONE = 5  # of its rollback: each kind of fact goes in one effect
FOR_GOOD = (1,) * 1000
UNIT = "zfsilo-volume@data.service"
VOLUME = ("org.zfsilo1", "/org/zfsilo1/volume/data", "org.zfsilo1.Volume")
STUCK = "OPERATION_STATE_NEEDS_REPAIR"
TAKEN_BACK = "OPERATION_STATE_ROLLED_BACK"
DEADLINE_S = 60
FIRST_PAUSE_S = 5


@pytest.fixture(scope="module")
def host(sd: SystemdHost) -> Host:
    """zfsilod over it, and a host to publish to."""
    return Host(sd)


@pytest.fixture(autouse=True)
def volume(host: Host) -> Iterator[None]:
    """Give every test a volume, and take care that nothing is left of it."""
    host.volume(*CREATE)
    yield
    host.clean()
    assert host.facts.snapshot() == {}


def fail(host: Host, *then: int) -> None:
    """Publish, and fail in the end; the rollback fails so many effects later, each time."""
    host.facts.light_fuse(EFFECTS, when="before", how="error", then=then)
    assert host.volume(*PUBLISH, check=False).rc != 0


def wait_for(host: Host, state: str) -> str:
    """Wait until the newest operation is in a state, and return its id."""
    end = time.monotonic() + DEADLINE_S
    while (newest := host.operations()[-1])["state"] != state:
        assert time.monotonic() < end, newest
        time.sleep(0.1)
    return str(newest["name"].rpartition("/")[2])


def wait_for_fuse(host: Host) -> None:
    """Wait until the fuse blew for the last time: what comes now succeeds."""
    end = time.monotonic() + DEADLINE_S
    while host.facts.get("fuse") is not None:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_every_undo_that_fails_once_heals_by_itself(host: Host) -> None:
    before = host.facts.snapshot()
    for effect in range(1, EFFECTS):
        fail(host, effect)
        wait_for(host, TAKEN_BACK)
        assert host.facts.snapshot() == before
        if host.facts.douse():
            break  # the rollback has no more effects
    print(f"{effect - 1} effects of a rollback failed once each")
    assert effect > LEAST_UNDONE


def test_everybody_is_told_and_only_a_way_out_is_open(sd: SystemdHost, host: Host) -> None:
    before = host.facts.snapshot()
    fail(host, 3, *FOR_GOOD)
    name = wait_for(host, STUCK)

    shown = json.loads(host.volume("show", "data", "--json").stdout)
    assert any(f"operation repair {name}" in each for each in shown["conditions"])
    assert f"operation repair {name}" in host.volume("show", "data").stdout
    conditions = sd.run("busctl", "get-property", *VOLUME, "Conditions").stdout
    assert f"operation repair {name}" in conditions
    assert "needs repair" in conditions
    sd.run("journalctl", "--sync")
    status = sd.run("systemctl", "status", "--full", UNIT, check=False).stdout
    assert f"publish volumes/data: needs repair: zfsiloctl operation repair {name}" in status

    for words in (("resize", "data", "2G"), (*PUBLISH, "--readonly"), ("delete", "data", "--yes")):
        refused = host.volume(*words, check=False)
        assert refused.rc != 0
        assert "needs repair" in refused.stderr
    assert sd.run("systemctl", "start", UNIT, check=False).rc != 0, "so is the unit"
    sd.run("systemctl", "stop", UNIT)
    sd.run("systemctl", "reset-failed", UNIT, check=False)

    host.facts.douse()
    host.ctl("operation", "repair", name)
    wait_for(host, TAKEN_BACK)
    assert host.facts.snapshot() == before
    assert json.loads(host.volume("show", "data", "--json").stdout)["conditions"] == []
    sd.run("systemctl", "reset-failed", "zfsilo-rollback@*", check=False)
    host.volume(*PUBLISH)


def test_it_is_tried_again_after_a_while(sd: SystemdHost, host: Host) -> None:
    fail(host, 3, 1)  # as systemd starts it, and as the daemon does at once
    wait_for(host, STUCK)
    since = time.monotonic()
    wait_for(host, TAKEN_BACK)
    print(f"the next try came after {time.monotonic() - since:.1f} s")
    assert time.monotonic() - since > FIRST_PAUSE_S - 1


def test_a_way_down_tries_it_first_and_goes_on(host: Host) -> None:
    fail(host, 3, 1)
    wait_for_fuse(host)  # the daemon's own next try meets it, not that of the way down
    host.volume("unpublish", "data", "--all")
    assert {each.partition(":")[0] for each in host.facts.snapshot()} == {"zvol"}


def test_what_cannot_be_taken_back_is_let_go_of(sd: SystemdHost, host: Host) -> None:
    before = host.facts.snapshot()
    fail(host, 3, *FOR_GOOD)
    name = wait_for(host, STUCK)
    host.facts.douse()
    host.ctl("operation", "abandon", name)
    assert wait_for(host, "OPERATION_STATE_ABANDONED") == name
    assert host.facts.snapshot() != before, "what it made stays behind"
    host.volume(*PUBLISH)  # and is no obstacle to another try
    sd.run("systemctl", "reset-failed", "zfsilo-rollback@*", check=False)

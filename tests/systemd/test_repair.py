"""Failing rollbacks under a real systemd: each undo once, and one permanently."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.crash.units import CREATE, PUBLISH, UnitsHost
from tests.worker_rig import not_sticky

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

EFFECTS = 10  # of a publication
LEAST_UNDONE = 5  # effects of its rollback: one per kind of fact
PERMANENTLY = (1,) * 1000
UNIT = "zfsilo-volume@data.service"
VOLUME = ("org.zfsilo1", "/org/zfsilo1/volume/data", "org.zfsilo1.Volume")
NEEDS_REPAIR = "OPERATION_STATE_NEEDS_REPAIR"
ROLLED_BACK = "OPERATION_STATE_ROLLED_BACK"
DEADLINE_S = 60
FIRST_PAUSE_S = 5


@pytest.fixture(scope="module")
def host(sd: SystemdHost) -> UnitsHost:
    """zfsilod on a simulated host, with a client to publish to."""
    return UnitsHost(sd)


@pytest.fixture(autouse=True)
def volume(host: UnitsHost) -> Iterator[None]:
    """Create a volume for each test, and assert that nothing is left of it."""
    host.volume(*CREATE)
    yield
    host.clean()
    assert all(name.startswith("owner:") for name in host.facts.snapshot())  # of the pool


def fail(host: UnitsHost, *then: int) -> None:
    """Publish and fail at the last effect; the rollback fails `then` effects later, each time."""
    host.facts.light_fuse(EFFECTS, when="before", how="error", then=then)
    assert host.volume(*PUBLISH, check=False).rc != 0


def wait_for(host: UnitsHost, state: str) -> str:
    """Wait until the newest operation is in a state, and return its id."""
    end = time.monotonic() + DEADLINE_S
    while (newest := host.operations()[-1])["state"] != state:
        assert time.monotonic() < end, newest
        time.sleep(0.1)
    return str(newest["name"].rpartition("/")[2])


def wait_for_fuse(host: UnitsHost) -> None:
    """Wait until the fuse has blown for the last time, so that later effects succeed."""
    end = time.monotonic() + DEADLINE_S
    while host.facts.get("fuse") is not None:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_every_undo_that_fails_once_is_retried(host: UnitsHost) -> None:
    before = host.facts.snapshot()
    for effect in range(1, EFFECTS):
        fail(host, effect)
        wait_for(host, ROLLED_BACK)
        assert not_sticky(host.facts.snapshot()) == not_sticky(before)
        if host.facts.douse():
            break  # the rollback has no more effects
    print(f"{effect - 1} effects of a rollback failed once each")
    assert effect > LEAST_UNDONE


def test_needs_repair_is_shown_everywhere_and_refuses_other_changes(
    sd: SystemdHost, host: UnitsHost
) -> None:
    before = host.facts.snapshot()
    fail(host, 3, *PERMANENTLY)
    name = wait_for(host, NEEDS_REPAIR)

    shown = json.loads(host.volume("show", "data", "--json").stdout)
    assert any(f"operation repair {name}" in condition for condition in shown["conditions"])
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
    assert sd.run("systemctl", "start", UNIT, check=False).rc != 0, "the unit must be refused too"
    sd.run("systemctl", "stop", UNIT)
    sd.run("systemctl", "reset-failed", UNIT, check=False)

    host.facts.douse()
    host.ctl("operation", "repair", name)
    wait_for(host, ROLLED_BACK)
    assert not_sticky(host.facts.snapshot()) == not_sticky(before)
    assert json.loads(host.volume("show", "data", "--json").stdout)["conditions"] == []
    sd.run("systemctl", "reset-failed", "zfsilo-rollback@*", check=False)
    host.volume(*PUBLISH)


def test_the_rollback_is_retried_after_a_pause(sd: SystemdHost, host: UnitsHost) -> None:
    fail(host, 3, 1)  # fails when systemd starts it, and at the first retry of the daemon
    wait_for(host, NEEDS_REPAIR)
    since = time.monotonic()
    wait_for(host, ROLLED_BACK)
    print(f"the next retry came after {time.monotonic() - since:.1f} s")
    assert time.monotonic() - since > FIRST_PAUSE_S - 1


def test_unpublish_first_retries_the_rollback(host: UnitsHost) -> None:
    fail(host, 3, 1)
    wait_for_fuse(host)  # blown by the daemon's retry, not by that of the unpublication
    host.volume("unpublish", "data", "--all")
    assert {fact.partition(":")[0] for fact in host.facts.snapshot()} == {"owner", "zvol"}


def test_an_operation_that_cannot_be_rolled_back_is_abandoned(
    sd: SystemdHost, host: UnitsHost
) -> None:
    before = host.facts.snapshot()
    fail(host, 3, *PERMANENTLY)
    name = wait_for(host, NEEDS_REPAIR)
    host.ctl("operation", "abandon", name)
    host.facts.douse()  # not before: the daemon's next try would succeed
    assert wait_for(host, "OPERATION_STATE_ABANDONED") == name
    assert host.facts.snapshot() != before, "its facts must remain"
    host.volume(*PUBLISH)  # the abandoned operation must not block another one
    sd.run("systemctl", "reset-failed", "zfsilo-rollback@*", check=False)

"""Runs of snapshot policies that come due while the pool may not be changed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.service_fixture import DEADLINE_S
from tests.test_ownership import StartedDaemon, daemon
from tests.test_snapshot_policies import TIMER, FakeTimers
from zfsilod.model.errors import Unavailable
from zfsilod.model.identity import DAEMON
from zfsilod.model.policies import PolicyOutcome
from zfsilod.model.records import Snapshot
from zfsilod.requests.snapshot_policies import CreateSnapshotPolicy, DeleteSnapshotPolicy
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.policy_timers import TimerKeeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DATA = CreateVolume(id="data", capacity_bytes=1 << 30)
NIGHTLY = CreateSnapshotPolicy(id="nightly", calendar="daily", grid="3x1d")
POOL = "pool:tank"


@pytest.fixture
async def booted(tmp_path: Path) -> AsyncIterator[StartedDaemon]:
    """A daemon that has a policy, after a boot before the import of the pool."""
    state, pool = tmp_path / "state", tmp_path / "facts.json"
    async with daemon(state, pool) as started:
        await started.fixture.do(DATA, NIGHTLY)
        started.facts.effect(POOL, "EXPORTED")
    async with daemon(state, pool) as started:
        assert started.holds == ["POOL_UNKNOWN"]
        yield started


def taken(started: StartedDaemon) -> int:
    with started.context.read() as txn:
        return len(list(txn.scan(Snapshot)))


def outcome(started: StartedDaemon) -> PolicyOutcome:
    with started.context.read() as txn:
        return next(txn.scan(PolicyOutcome), PolicyOutcome(id="nightly"))


async def run(started: StartedDaemon) -> None:
    """Run the policy, as its unit does. Raises Unavailable when it fails."""
    done = await started.service.policies.run("nightly", caller=DAEMON)
    done.check("nightly")


async def passes(started: StartedDaemon) -> None:
    """Let the supervisor make passes, until nothing is missed while the pool is there."""
    started.supervisor.compare_due = 0.0
    await started.supervisor.follow_pool()
    with suppress(Unavailable):  # the space of the pool is not known
        await started.supervisor.act()
    async with asyncio.timeout(DEADLINE_S):
        while outcome(started).missed and not started.holds:
            await started.service.executor.wait_for_change(0.1)
            await started.supervisor.act()


async def test_a_run_before_the_import_of_the_pool_follows(booted: StartedDaemon) -> None:
    with pytest.raises(Unavailable):
        await run(booted)
    await passes(booted)
    assert taken(booted) == 0
    assert outcome(booted).failures
    booted.facts.effect(POOL, None)
    await passes(booted)
    assert taken(booted) == 1
    assert outcome(booted).failures == ()
    assert outcome(booted).succeeded_at
    await passes(booted)
    assert taken(booted) == 1


async def test_a_run_that_finds_the_pool_gone_follows(tmp_path: Path) -> None:
    """Between two comparisons of store and pool, which find the hold later."""
    async with daemon(tmp_path / "state", tmp_path / "facts.json") as started:
        await started.fixture.do(DATA, NIGHTLY)
        started.facts.effect(POOL, "EXPORTED")
        assert started.holds == []
        with pytest.raises(Unavailable):
            await run(started)
        started.facts.effect(POOL, None)
        await passes(started)
        assert taken(started) == 1


async def test_another_failure_is_not_repeated(tmp_path: Path) -> None:
    async with daemon(tmp_path / "state", tmp_path / "facts.json") as started:
        await started.fixture.do(DATA, NIGHTLY)
        zvol = started.facts.get("zvol:tank/zfsilo/data")
        started.facts.effect("zvol:tank/zfsilo/data", None)
        with pytest.raises(Unavailable):
            await run(started)
        assert not outcome(started).missed
        started.facts.effect("zvol:tank/zfsilo/data", zvol)
        await passes(started)
        assert taken(started) == 0


async def test_a_policy_that_was_deleted_is_not_run_again(booted: StartedDaemon) -> None:
    with pytest.raises(Unavailable):
        await run(booted)
    await booted.fixture.do(DeleteSnapshotPolicy(id="nightly"))
    booted.facts.effect(POOL, None)
    await passes(booted)
    assert taken(booted) == 0


async def test_no_timer_is_started_while_the_pool_is_held(booted: StartedDaemon) -> None:
    """Persistent=yes: a timer whose run is due fires when it is started."""
    timers = FakeTimers()
    keeper = TimerKeeper(booted.context, timers)
    await keeper.keep()
    assert timers.calls == ["stop stranger"]
    booted.facts.effect(POOL, None)
    booted.supervisor.compare_due = 0.0
    await booted.supervisor.follow_pool()
    await keeper.keep()
    assert timers.calls == ["stop stranger", f"start {TIMER}"]

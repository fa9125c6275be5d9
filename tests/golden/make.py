"""Generator of the golden stores of the current schema: `python -m tests.golden.make`.

It makes one store for each case of tests/crash/cases.py, killed with its worker in the middle of
the operation; one for each state of an operation; and one with a record of every class, all fields
filled. The stores of a schema are made once, by the first version that has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, get_args
from unittest import mock

from tests.crash.cases import CASES, Case
from tests.crash.fault_injector import Fault
from tests.crash.matrix import CaseRunner
from tests.crash.simulated_machine import CountedRandomness, SimulatedMachine, simulated_machine
from tests.doubles import SETTINGS
from tests.examples import ATTACHMENT, UID, VOLUME, steps
from tests.golden import DIRECTORY, Facts, Golden, save
from zfsilod.engine.steps.filesystem import Reported
from zfsilod.engine.worker import work
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.records import (
    Action,
    ActionStatus,
    Change,
    Condition,
    Dependent,
    Failure,
    Host,
    Issued,
    Mount,
    Operation,
    PendingRelease,
    Publication,
    Snapshot,
    SnapshotGroup,
    Token,
    Trashed,
)
from zfsilod.storage.store import SCHEMA, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zfsilod.model.record import Stored

STUCK_S = 2
TODAY = 1_800_000_000
FOLDER = DIRECTORY / f"schema-{SCHEMA}"
STATUSES: tuple[ActionStatus, ...] = get_args(ActionStatus)
LABELS = (("app", "db"), ("tier", "gold"))
OTHER = "iqn.2024-01.lab.other:host"
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
FILESYSTEM = Filesystem(
    state="CLONED",
    type="xfs",
    uuid=UUID,
    operation="01kd00000000000000000000aa",
    host="take",
    origin="7c2bd2e1-4d7f-4e1d-8f1f-1f6e8f409b22",
)
FULL_VOLUME = VOLUME.but(
    labels=LABELS,
    hosts=("take", "other"),
    state="PUBLISHED",
    guid="1234567890",
    access_modes=("SINGLE_NODE_WRITER", "MULTI_NODE_READER_ONLY"),
    filesystem=FILESYSTEM,
    epoch=3,
    source_snapshot="monday",
    source_volume="origin",
    origin="f" * 32,
    created_at=TODAY,
    updated_at=TODAY + 1,
)
FULL_ATTACHMENT = ATTACHMENT.but(
    id="here",
    rotation=2,
    readonly=True,
    restore="BOOT",
    published_here="01kd00000000000000000000ab",
    filesystem=FILESYSTEM,
    mount_options=("noatime",),
    stage_readonly=True,
    mounts=(Mount(path="/srv/data", readonly=True, made_path=True),),
    boot_id="first",
    created_at=TODAY,
    updated_at=TODAY + 1,
)
ALL_STEPS = (
    *steps(),
    Reported(server="give", volume="data", epoch=1, state="READY", type="ext4", uuid=UUID),
)
ACTIONS = tuple(
    Action(step=step, up=bool(index % 2), status=STATUSES[index % len(STATUSES)], took_ms=index)
    for index, step in enumerate(ALL_STEPS)
)
RECORDS: tuple[Stored, ...] = (
    FULL_VOLUME,
    VOLUME.but(id="block", uid="e" * 32, mode="BLOCK", properties=(), thin=False),
    FULL_ATTACHMENT,
    Trashed(
        id=f"old/{UID}",
        volume=FULL_VOLUME.but(id="old", dataset=f"tank/.trash/{UID}"),
        home="tank/old",
        deleted_at=TODAY,
        purge_at=TODAY + 60,
    ),
    Snapshot(
        id="monday",
        uid="c" * 32,
        volume="data",
        volume_uid=UID,
        size_bytes=1 << 30,
        volblocksize=16384,
        mode="FILESYSTEM",
        filesystem=FILESYSTEM,
        labels=LABELS,
        group="both",
        guid="987654321",
        created_at=TODAY,
    ),
    SnapshotGroup(
        id="both",
        uid="c" * 32,
        volumes=("data",),
        snapshots=("monday",),
        labels=LABELS,
        created_at=TODAY,
    ),
    Dependent(id=f"{UID}/snapshots/monday", name="snapshots/monday"),
    Publication(
        id="data/other",
        volume="data",
        host="other",
        initiator=OTHER,
        transport="ISCSI",
        access_mode="MULTI_NODE_READER_ONLY",
        readonly=True,
        epoch=3,
        published_by="host other",
        client_operation="01kd00000000000000000000ac",
        rotation=1,
        rotation_due=True,
        created_at=TODAY,
    ),
    Host(
        id="other",
        iqn=OTHER,
        nqn="nqn.2014-08.org.nvmexpress:uuid:" + UUID,
        addresses=("10.77.0.2",),
        labels=LABELS,
        max_attachments=8,
        created_at=TODAY,
        updated_at=TODAY + 1,
    ),
    PendingRelease(id="01kd00000000000000000000ad", server="give", volume="data"),
    Condition(id=UID, sentences=("the pool is degraded",)),
    Token(
        id="backup",
        digest="a" * 64,
        role="reader",
        subject="backup",
        created_at=TODAY,
        expires_at=TODAY + 60,
    ),
    Issued(
        id="b" * 64,
        subject="host/take",
        role="host",
        created_at=TODAY,
        expires_at=TODAY + 60,
        revoked_at=TODAY + 30,
    ),
    Operation(
        id="01kd00000000000000000000ae",
        kind="publish",
        subject="volumes/data",
        title="publish data to other",
        actions=ACTIONS,
        claims=("volume/data",),
        commit=(
            Change(bucket="volume", key="data", record=FULL_VOLUME),
            Change(bucket="attachment", key="here", record=FULL_ATTACHMENT),
            Change(bucket="secret", key="data/other#1"),
        ),
        revert=(Change(bucket="secret", key="data/other#2"),),
        facts=(("guid", "1234567890"), (f"snapshot guid {UID}", "1")),
        fingerprint="d" * 64,
        caller="uid 0 (unix)",
        state="ABANDONED",
        attempts=2,
        boot_id="first",
        batch="01kd00000000000000000000af",
        created_at=TODAY,
        ended_at=TODAY + 1,
        failure=Failure(
            name="Conflict",
            message="the target is of another",
            reason="ALIEN",
            facts=(("target", "iqn"),),
            step="do Target",
        ),
    ),
)


class StoreGenerator:
    """Generates the stores of one case."""

    def __init__(
        self, machine: SimulatedMachine, case: Case, randomness: CountedRandomness
    ) -> None:
        self.machine = machine
        self.case = case
        self.randomness = randomness
        self.runner = CaseRunner(case, machine, randomness)
        self.done: Facts
        self.alone = False

    async def make(self, index: int) -> None:
        """Make the store of the case, and for some cases those of further states."""
        machine, name = self.machine, self.case.name
        await self.runner.prepare()
        await self._start()
        await machine.settle()
        self.done = machine.host.facts.snapshot()
        self.alone = len(machine.operations()) == len(self.runner.older) + 1
        points = self.runner.points.get("run", 0)
        if points < 2:
            return self._save(name)
        point = points // 2 + 1
        while not await self._interrupt(point, "kill worker", index):
            point //= 2  # later points are of the release that the daemon makes afterwards
        self._save(name)
        for unit in dict.fromkeys(operation.unit for operation in machine.live()):
            work(machine.store, machine.host, unit, "run")
        if "WAITING" in {operation.state for operation in machine.live()}:
            self._save(f"{name}-waiting")
        if name == "publish":
            await self._states(points)
        return None

    async def _states(self, points: int) -> None:
        """Make one store for each state of a publication that failed."""
        machine = self.machine
        assert await self._interrupt(points - 3, "error", 1, back=4)
        self._save("publish-failed")
        (failed,) = machine.live()
        machine.host.facts.light_fuse(1, when="before", how="error")
        work(machine.store, machine.host, failed.unit, "rollback")
        machine.host.facts.memory.pop("blown")
        self._save("publish-needs-repair")
        machine.start_daemon()
        await machine.fixture.service.abandon(failed.id)
        await machine.stop_daemon()
        self.alone = False
        self._save("publish-abandoned")
        await self._start(Fault("run", points - 3, "after", "error"))
        await machine.settle()
        self._save("publish-rolled-back")

    async def _start(self, *faults: Fault) -> None:
        """Submit the request of the case to the restored machine, with these faults."""
        await self.machine.load(self.runner.start)
        self.randomness.restore()
        self.machine.injector.set(*faults)
        self.machine.request(self.case.submit)

    async def _interrupt(self, point: int, how: str, index: int, *, back: int = 1) -> bool:
        """Kill the worker at a point and the machine at a point of the rollback.

        Return whether the rollback reached its point.
        """
        machine = self.machine
        when = "after" if index % 2 else "before"
        first = Fault("run", point, when, how)  # type: ignore[arg-type]
        await self._start(first, Fault("rollback", back, "before", "reboot"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STUCK_S):
                while not machine.dead:
                    await machine.woken.wait()
                    machine.woken.clear()
        await machine.stop_daemon()
        await asyncio.gather(*machine.units.tasks.values(), return_exceptions=True)
        machine.units.off = False
        return machine.dead

    def _save(self, name: str) -> None:
        pairs, facts = self.machine.dump()
        write(
            self.machine.store,
            name,
            facts=facts,
            pairs=pairs,
            before=self.runner.start[1] if self.alone else None,
            done=self.done if self.alone else None,
        )


def write(
    store: Store,
    name: str,
    *,
    facts: Facts,
    pairs: list[tuple[bytes, bytes]],
    before: Facts | None = None,
    done: Facts | None = None,
) -> None:
    """Write the file of a store."""
    key = store.directory / "key"
    golden = Golden(
        key=key.read_bytes() if key.exists() else bytes(32),
        facts=dict(facts),
        before=before,
        done=done,
        pairs=tuple((key.decode(), value) for key, value in pairs),
    )
    save(FOLDER / f"{name}.jsonl", golden)


@asynccontextmanager
async def predictable(case: Case) -> AsyncIterator[tuple[SimulatedMachine, CountedRandomness]]:
    """Build a machine without random numbers and without a clock."""
    randomness, still = CountedRandomness(), SimpleNamespace(monotonic=lambda: 0.0)
    settings = SETTINGS.but(trash_retention_s=case.retention_s)
    with (
        tempfile.TemporaryDirectory() as directory,
        randomness.patched(),
        mock.patch("zfsilod.engine.worker.time", still),
        mock.patch("zfsilod.service.supervisor.REPAIR_PAUSES_S", (0,)),
    ):
        async with simulated_machine(Path(directory), settings) as machine:
            yield machine, randomness


async def make_records() -> None:
    """Make the store with a record of every class, and actions of every status."""
    async with predictable(CASES[0]) as (machine, _randomness):
        await machine.stop_daemon()
        with machine.store.write() as txn:
            for record in RECORDS:
                txn.put(record)
        pairs, facts = machine.dump()
        write(machine.store, "records", facts=facts, pairs=pairs)


async def make_case(case: Case, index: int) -> None:
    """Make the stores of one case."""
    async with predictable(case) as (machine, randomness):
        await StoreGenerator(machine, case, randomness).make(index)


def main() -> int:
    """Make all stores of this schema, unless they exist."""
    if FOLDER.exists():
        sys.stderr.write(f"{FOLDER} exists: the stores of schema {SCHEMA} are made already\n")
        return 1
    FOLDER.mkdir()
    logging.disable(logging.ERROR)
    asyncio.run(make_records())
    for index, case in enumerate(CASES):
        asyncio.run(make_case(case, index))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes the golden stores of this version's schema: `python -m tests.golden.make`.

One store for each case of tests/crash/cases.py, whose worker and machine die in the middle of the
operation; one for each state that an operation can have; and one with a record of every class, all
fields filled. Stores of a schema are made once, by the version that has it first, and never again.
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
from tests.crash.life import Chance, Machine, machine
from tests.crash.matrix import Bench
from tests.crash.saw import Cut
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
PLACE = DIRECTORY / f"schema-{SCHEMA}"
STATUSES: tuple[ActionStatus, ...] = get_args(ActionStatus)
LABELS = (("app", "db"), ("tier", "gold"))
OTHER = "iqn.2024-01.lab.other:host"
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
FILESYSTEM = Filesystem(
    state="CLONED", type="xfs", uuid=UUID, operation="01kd00000000000000000000aa", host="take",
    origin="7c2bd2e1-4d7f-4e1d-8f1f-1f6e8f409b22",
)  # fmt: skip
FULL_VOLUME = VOLUME.but(
    labels=LABELS, hosts=("take", "other"), state="PUBLISHED", guid="1234567890",
    access_modes=("SINGLE_NODE_WRITER", "MULTI_NODE_READER_ONLY"), filesystem=FILESYSTEM, epoch=3,
    source_snapshot="monday", source_volume="origin", origin="f" * 32,
    created_at=TODAY, updated_at=TODAY + 1,
)  # fmt: skip
FULL_ATTACHMENT = ATTACHMENT.but(
    id="here", rotation=2, readonly=True, restore="BOOT",
    published_here="01kd00000000000000000000ab", filesystem=FILESYSTEM, mount_options=("noatime",),
    stage_readonly=True, mounts=(Mount(path="/srv/data", readonly=True, made_path=True),),
    boot_id="first", created_at=TODAY, updated_at=TODAY + 1,
)  # fmt: skip
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
        id=f"old/{UID}", volume=FULL_VOLUME.but(id="old", dataset=f"tank/.trash/{UID}"),
        home="tank/old", deleted_at=TODAY, purge_at=TODAY + 60,
    ),
    Snapshot(
        id="monday", uid="c" * 32, volume="data", volume_uid=UID, size_bytes=1 << 30,
        volblocksize=16384, mode="FILESYSTEM", filesystem=FILESYSTEM, labels=LABELS, group="both",
        guid="987654321", created_at=TODAY,
    ),
    SnapshotGroup(
        id="both", uid="c" * 32, volumes=("data",), snapshots=("monday",), labels=LABELS,
        created_at=TODAY,
    ),
    Dependent(id=f"{UID}/snapshots/monday", name="snapshots/monday"),
    Publication(
        id="data/other", volume="data", host="other", initiator=OTHER, transport="ISCSI",
        access_mode="MULTI_NODE_READER_ONLY", readonly=True, epoch=3, published_by="host other",
        client_operation="01kd00000000000000000000ac", rotation=1, rotation_due=True,
        created_at=TODAY,
    ),
    Host(
        id="other", iqn=OTHER, nqn="nqn.2014-08.org.nvmexpress:uuid:" + UUID,
        addresses=("10.77.0.2",), labels=LABELS, max_attachments=8,
        created_at=TODAY, updated_at=TODAY + 1,
    ),
    PendingRelease(id="01kd00000000000000000000ad", server="give", volume="data"),
    Condition(id=UID, sentences=("the pool is degraded",)),
    Token(
        id="backup", digest="a" * 64, role="reader", subject="backup", created_at=TODAY,
        expires_at=TODAY + 60,
    ),
    Issued(
        id="b" * 64, subject="host/take", role="host", created_at=TODAY, expires_at=TODAY + 60,
        revoked_at=TODAY + 30,
    ),
    Operation(
        id="01kd00000000000000000000ae", kind="publish", subject="volumes/data",
        title="publish data to other", actions=ACTIONS, claims=("volume/data",),
        commit=(
            Change(bucket="volume", key="data", record=FULL_VOLUME),
            Change(bucket="attachment", key="here", record=FULL_ATTACHMENT),
            Change(bucket="secret", key="data/other#1"),
        ),
        revert=(Change(bucket="secret", key="data/other#2"),),
        facts=(("guid", "1234567890"), (f"snapshot guid {UID}", "1")), fingerprint="d" * 64,
        caller="uid 0 (unix)", state="ABANDONED", attempts=2, boot_id="first",
        batch="01kd00000000000000000000af", created_at=TODAY, ended_at=TODAY + 1,
        failure=Failure(
            name="Conflict", message="the target is of another", reason="ALIEN",
            facts=(("target", "iqn"),), step="do Target",
        ),
    ),
)  # fmt: skip


class Maker:
    """Makes the stores of one case."""

    def __init__(self, built: Machine, case: Case, chance: Chance) -> None:
        self.machine = built
        self.case = case
        self.chance = chance
        self.bench = Bench(case, built, chance)
        self.done: Facts
        self.alone = False

    async def make(self, index: int) -> None:
        """Make the store of the case, and with some of them others."""
        built, name = self.machine, self.case.name
        await self.bench.prepare()
        await self._begin()
        await built.settle()
        self.done = built.host.facts.snapshot()
        self.alone = len(built.operations()) == len(self.bench.older) + 1
        points = self.bench.points.get("run", 0)
        if points < 2:
            return self._save(name)
        point = points // 2 + 1
        while not await self._cut(point, "kill worker", index):
            point //= 2  # those behind are of what the daemon does later: pays a debt
        self._save(name)
        for unit in dict.fromkeys(operation.unit for operation in built.live()):
            work(built.store, built.host, unit, "run")
        if "WAITING" in {operation.state for operation in built.live()}:
            self._save(f"{name}-waiting")
        if name == "publish":
            await self._states(points)
        return None

    async def _states(self, points: int) -> None:
        """Make one store for each state of a publication that failed."""
        built = self.machine
        assert await self._cut(points - 3, "error", 1, back=4)
        self._save("publish-failed")
        (failed,) = built.live()
        built.host.facts.light_fuse(1, when="before", how="error")
        work(built.store, built.host, failed.unit, "rollback")
        built.host.facts.memory.pop("blown")
        self._save("publish-needs-repair")
        built.born()
        await built.house.service.abandon(failed.id)
        await built.bury()
        self.alone = False
        self._save("publish-abandoned")
        await self._begin(Cut("run", points - 3, "after", "error"))
        await built.settle()
        self._save("publish-rolled-back")

    async def _begin(self, *cuts: Cut) -> None:
        """Ask for the case from its beginning, with these cuts."""
        await self.machine.load(self.bench.start)
        self.chance.again()
        self.machine.saw.set(*cuts)
        self.machine.request(self.case.submit)

    async def _cut(self, point: int, how: str, index: int, *, back: int = 1) -> bool:
        """Let the worker end at a point, and the machine at a point of the rollback.

        Return whether it came to this.
        """
        built = self.machine
        when = "after" if index % 2 else "before"
        first = Cut("run", point, when, how)  # type: ignore[arg-type]
        await self._begin(first, Cut("rollback", back, "before", "reboot"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STUCK_S):
                while not built.dead:
                    await built.stirred.wait()
                    built.stirred.clear()
        await built.bury()
        await asyncio.gather(*built.units.tasks.values(), return_exceptions=True)
        built.units.off = False
        return built.dead

    def _save(self, name: str) -> None:
        pairs, facts = self.machine.dump()
        write(
            self.machine.store, name, facts=facts, pairs=pairs,
            before=self.bench.start[1] if self.alone else None,
            done=self.done if self.alone else None,
        )  # fmt: skip


def write(
    store: Store, name: str, *, facts: Facts, pairs: list[tuple[bytes, bytes]],
    before: Facts | None = None, done: Facts | None = None,
) -> None:  # fmt: skip
    """Write a store's file."""
    key = store.directory / "key"
    golden = Golden(
        key=key.read_bytes() if key.exists() else bytes(32),
        facts=dict(facts), before=before, done=done,
        pairs=tuple((key.decode(), value) for key, value in pairs),
    )  # fmt: skip
    save(PLACE / f"{name}.jsonl", golden)


@asynccontextmanager
async def predictable(case: Case) -> AsyncIterator[tuple[Machine, Chance]]:
    """Build a machine without chance and without a clock."""
    chance, still = Chance(), SimpleNamespace(monotonic=lambda: 0.0)
    settings = SETTINGS.but(trash_retention_s=case.retention_s)
    with (
        tempfile.TemporaryDirectory() as directory,
        chance.instead(),
        mock.patch("zfsilod.engine.worker.time", still),
        mock.patch("zfsilod.requests.sync.REPAIR_PAUSES_S", (0,)),
    ):
        async with machine(Path(directory), settings) as built:
            yield built, chance


async def make_records() -> None:
    """Make the store with a record of every class, and the state and marks of all kinds."""
    async with predictable(CASES[0]) as (built, _chance):
        await built.bury()
        with built.store.write() as txn:
            for record in RECORDS:
                txn.put(record)
        pairs, facts = built.dump()
        write(built.store, "records", facts=facts, pairs=pairs)


async def make_case(case: Case, index: int) -> None:
    """Make the stores of one case."""
    async with predictable(case) as (built, chance):
        await Maker(built, case, chance).make(index)


def main() -> int:
    """Make all stores of this schema, unless there are some."""
    if PLACE.exists():
        sys.stderr.write(f"{PLACE} exists: the stores of schema {SCHEMA} are made already\n")
        return 1
    PLACE.mkdir()
    logging.disable(logging.ERROR)
    asyncio.run(make_records())
    for index, case in enumerate(CASES):
        asyncio.run(make_case(case, index))
    return 0


if __name__ == "__main__":
    sys.exit(main())

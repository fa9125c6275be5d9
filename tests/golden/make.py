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
from typing import TYPE_CHECKING
from unittest import mock

from tests.crash.cases import CASES, Case
from tests.crash.fault_injector import Fault
from tests.crash.matrix import CaseRunner
from tests.crash.randomness import CountedRandomness
from tests.crash.simulated_machine import SimulatedMachine, simulated_machine
from tests.golden import DIRECTORY, Facts, Golden, save
from tests.golden.records import RECORDS
from tests.service_fixture import SETTINGS
from zfsilod.engine.worker import work
from zfsilod.storage.store import SCHEMA, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STUCK_S = 2
FOLDER = DIRECTORY / f"schema-{SCHEMA}"


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
    key = Path(store.directory) / "key"
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

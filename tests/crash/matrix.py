"""Crash matrix: each request with a fault at every point, on the fake host and the real store.

Each case first runs without a fault: that counts its points and gives the state "done". Then it
runs once for each kind of fault before and after each point; each rollback in turn gets a fault at
each of its points. In the end the request is done, or facts, records, claims and secrets are those
from before.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import tempfile
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from unittest import mock

from tests.crash.cases import EPOCH, Case
from tests.crash.fault_injector import Fault, How, Process, When
from tests.crash.randomness import CountedRandomness
from tests.crash.simulated_machine import SimulatedMachine, simulated_machine
from tests.service_fixture import administrator
from zfsilod.host.fake.iscsi import MULTIPATHD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.crash.report import CrashReport, Size
    from tests.crash.simulated_machine import Dump
    from zfsilod.model.records import Operation
    from zfsilod.requests.request import Request

State = dict[str, object]
WHENS: tuple[When, ...] = get_args(When)
HOWS: tuple[How, ...] = get_args(How)
SHOWN = 4


class CaseRunner:
    """Runs one case on one machine with faults, and compares the state afterwards."""

    def __init__(
        self, case: Case, machine: SimulatedMachine, randomness: CountedRandomness
    ) -> None:
        self.case = case
        self.machine = machine
        self.randomness = randomness
        self.whole: Dump  # the start before the damage
        self.start: Dump
        self.before: State
        self.between: State  # after the prerequisite
        self.done: State
        self.rebooted: dict[str, State] = {}  # the same states after a reboot and a sync
        self.points: dict[Process, int]

    async def prepare(self) -> None:
        """Make the requests before the case, then run it once without a fault."""
        machine = self.machine
        memory = machine.host.facts.memory
        if self.case.several:
            memory[MULTIPATHD] = True
        for request in self.case.before:
            await machine.fixture.do(request)
        await machine.settle()
        for name in [n for n in memory if n.startswith(self.case.lost or ("nothing",))]:
            del memory[name]
        self.whole = machine.dump()
        if self.case.damage is not None:
            self.case.damage(machine)
        self.start = machine.dump()
        self.randomness.save()
        self.older = {op.id for op in machine.operations()}
        self.before = self.between = machine.state()
        self.rebooted["before"] = self.rebooted["between"] = await self._reboot()
        if self.case.prerequisite is not None:
            await self._run(do=self.case.prerequisite)
            self.between = machine.state()
            self.rebooted["between"] = await self._reboot()
        await self._run()
        if machine.refusal is not None:
            raise AssertionError(f"{self.case.name} is refused: {machine.refusal}")
        self.done = machine.state()
        self.points = dict(machine.injector.points)
        self.rebooted["done"] = await self._reboot()

    async def _run(self, *faults: Fault, do: Request[Any] | None = None) -> None:
        """Run the case, or another request, from the start with these faults."""
        await self.machine.load(self.start)
        self.randomness.restore()
        self.machine.injector.set(*faults)
        case = self.case if do is None else self.case._replace(request=do, find=None)
        await self.machine.carry_out(case.submit)

    async def _reboot(self) -> State:
        await self.machine.stop_daemon()
        self.machine.reboot()
        self.machine.start_daemon()
        return await self._synced()

    async def _synced(self) -> State:
        """Return the state after the sync of all volumes that follows a boot."""
        self.machine.injector.set()
        await self.machine.carry_out(
            lambda fixture: fixture.service.reconciler.sync_all(caller=administrator("boot"))
        )
        return self.machine.state()

    async def inject(self, *faults: Fault) -> str:
        """Run the case with faults; return the problem afterwards, or an empty text."""
        await self._run(*faults)
        missed = len(faults) - len(self.machine.injector.injected)
        if missed:
            return f"{missed} of the faults were never reached"
        if self.case.batch:
            return _problem("repaired, but", self._differences(self.done, await self._synced()))
        operations = self._operations()
        now, allowed = self.machine.state(), self.allowed
        if any(fault.how == "reboot" for fault in faults):
            now, allowed = await self._synced(), self.rebooted
        if operations and operations[-1].state == "DONE":
            # After a reboot the operation itself may have been finished, beside the sync.
            finished = {name: value for name, value in self.done.items() if now.get(name) == value}
            wanted = {**allowed["done"], **finished}
            return _problem("done, but", self._differences(wanted, now))
        return min((self._undone(allowed[when], now) for when in ("before", "between")), key=len)

    def _undone(self, before: State, now: State) -> str:
        return _problem("rolled back, but", self._differences(before, now, self.case.may_remain))

    @property
    def allowed(self) -> dict[str, State]:
        """The states that are allowed in the end, unless the machine was rebooted."""
        return {"before": self.before, "between": self.between, "done": self.done}

    def _operations(self) -> list[Operation]:
        """Return the operations of the request in this run."""
        new = [op for op in self.machine.operations() if op.id not in self.older]
        return [op for op in new if op.kind == self.case.request.kind]

    def _differences(
        self, wanted: State, now: State, may_remain: tuple[str, ...] = ()
    ) -> list[str]:
        allowed = (*EPOCH, *may_remain)
        return [
            f"{name} is {now.get(name, 'gone')!r}, not {wanted.get(name, 'gone')!r}"
            for name in sorted(wanted.keys() | now.keys())
            if wanted.get(name) != now.get(name)
            and not any(re.fullmatch(pattern, name) for pattern in allowed)
        ]


def _problem(outcome: str, differences: list[str]) -> str:
    return f"{outcome} {'; '.join(differences[:SHOWN])}" if differences else ""


def faults_in(process: Process, points: Mapping[Process, int]) -> Iterator[Fault]:
    """Yield every fault at every point of a process."""
    for point in range(1, points.get(process, 0) + 1):
        for when in WHENS:
            for how in HOWS:
                if process != "daemon" or how != "kill worker":
                    yield Fault(process, point, when, how)


async def inject_faults(
    case: Case,
    directory: Path,
    report: CrashReport,
    *,
    long: bool = False,
    share: float = 1.0,
    seed: int = 0,
) -> None:
    """Run one case with each of its faults, or with a random share of them.

    `long`: the rollback after each fault gets faults too, not only the longest rollback.
    """
    randomness, dice = CountedRandomness(), random.Random(f"{seed} {case.name}")
    with randomness.patched(), mock.patch("zfsilod.service.supervisor.REPAIR_PAUSES_S", (0,)):
        async with simulated_machine(directory, case.settings) as machine:
            runner = CaseRunner(case, machine, randomness)
            await runner.prepare()
            rollbacks: list[tuple[int, Fault]] = []  # points of the rollback after a fault
            for fault in (*faults_in("daemon", runner.points), *faults_in("run", runner.points)):
                if dice.random() <= share:
                    await _try(runner, report, fault)
                    rollbacks.append((machine.injector.points["rollback"], fault))
            rollbacks = [
                (points, fault)
                for points, fault in rollbacks
                if points and fault.how in ("error", "kill worker")
            ]
            longest = sorted(rollbacks, key=itemgetter(0))[-1:]
            for points, first in rollbacks if long else longest:
                for fault in faults_in("rollback", {"rollback": points}):
                    if dice.random() <= share:
                        await _try(runner, report, first, fault)


async def _try(runner: CaseRunner, report: CrashReport, *faults: Fault) -> None:
    problem = await runner.inject(*faults)
    where = f"{runner.case.name} ({', then '.join(map(str, faults))}): "
    kind = f"{faults[-1].process}: {faults[-1].how}"
    report.case(runner.case.request.kind, kind, problem and where + problem)


def run(report: CrashReport, *, size: Size, seed: int, cases: Sequence[Case]) -> None:
    """Run cases; `short`: only the longest rollback of each case gets faults."""
    logging.disable(logging.ERROR)  # the daemon logs each injected failure
    for case in cases:
        before = report.passed.total()
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(
                inject_faults(case, Path(directory), report, long=size != "short", seed=seed)
            )
        report.say(f"{case.name}: {report.passed.total() - before} passed")
    logging.disable(logging.NOTSET)

"""Every request, cut at every point, in every way: on the fake host, through the real store.

First each case runs uncut: that counts its points, and shows what "done" looks like. Then it is cut
before and after each of them; and what rolls back is cut again before and after each point of its
rollback. In the end it is done, or everything is as it was: facts, records, claims and secrets.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, get_args
from unittest import mock

from tests.crash.cases import CASES, Case
from tests.crash.life import Chance, Machine, machine
from tests.crash.saw import Cut, How, SandboxPart, When
from tests.doubles import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.crash.life import Dump
    from tests.crash.report import Report, Size
    from zfsilod.model.records import Operation
    from zfsilod.requests.request import Request

State = dict[str, object]
WHENS: tuple[When, ...] = get_args(When)
HOWS: tuple[How, ...] = get_args(How)
SHOWN = 4


class Bench:
    """One case on one machine: what it looks like before, done, and taken back."""

    def __init__(self, case: Case, built: Machine, chance: Chance) -> None:
        self.case = case
        self.machine = built
        self.chance = chance
        self.start: Dump
        self.before: State  # and what it comes to when the machine is rebooted there
        self.between: State  # after what the service does first
        self.done: State
        self.rebooted: dict[str, State] = {}
        self.points: dict[SandboxPart, int]

    async def prepare(self) -> None:
        """Do what stands before the case, then run it once without a cut."""
        built = self.machine
        for request in self.case.before:
            await built.house.do(request)
        await built.settle()
        memory = built.host.facts.memory
        for name in [n for n in memory if n.startswith(self.case.meddle or ("nothing",))]:
            del memory[name]
        if self.case.spoil is not None:
            self.case.spoil(built)
        self.start = built.dump()
        self.chance.status()
        self.older = {op.id for op in built.operations()}
        self.before = self.between = built.state()
        self.rebooted["before"] = self.rebooted["between"] = await self._reboot()
        if self.case.first is not None:
            await self._again(do=self.case.first)
            self.between = built.state()
            self.rebooted["between"] = await self._reboot()
        await self._again()
        if built.refusal is not None:
            raise AssertionError(f"{self.case.name} is refused: {built.refusal}")
        self.done = built.state()
        self.points = dict(built.saw.points)
        self.rebooted["done"] = await self._reboot()

    async def _again(self, *cuts: Cut, do: Request | None = None) -> None:
        """Carry the case (or something else) out from its beginning, with these cuts."""
        await self.machine.load(self.start)
        self.chance.again()
        self.machine.saw.set(*cuts)
        case = self.case if do is None else self.case._replace(request=do, find=None)
        await self.machine.carry_out(case.submit)

    async def _reboot(self) -> State:
        await self.machine.bury()
        self.machine.reboot()
        self.machine.born()
        return await self._synced()

    async def _synced(self) -> State:
        """Return what is so after the comparison of all volumes that follows a boot."""
        self.machine.saw.set()
        await self.machine.carry_out(lambda house: house.service.sync_all(caller="boot"))
        return self.machine.state()

    async def cut(self, *cuts: Cut) -> str:
        """Carry the case out with cuts; return what is wrong afterwards ("": nothing)."""
        await self._again(*cuts)
        made = self.machine.saw.made
        if len(made) < len(cuts):
            return f"{len(cuts) - len(made)} of the cuts were never reached"
        if self.case.many:
            return _say("repaired, but", self._differences(self.done, await self._synced()))
        ended = self._operations()
        now, could_be = self.machine.state(), self.could_be
        if any(cut.how == "reboot" for cut in cuts):
            now, could_be = await self._synced(), self.rebooted
        if ended and ended[-1].state == "DONE":
            return _say("done, but", self._differences(could_be["done"], now))
        return min((self._back(could_be[when], now) for when in ("before", "between")), key=len)

    def _back(self, before: State, now: State) -> str:
        return _say("taken back, but", self._differences(before, now, self.case.sticky))

    @property
    def could_be(self) -> dict[str, State]:
        """What is allowed to be so in the end, by what it is like."""
        return {"before": self.before, "between": self.between, "done": self.done}

    def _operations(self) -> list[Operation]:
        """Return the operations of this story that carried the request out."""
        every = self.machine.operations()
        return [op for op in every if op.kind == self.case.request.kind and op.id not in self.older]

    def _differences(self, wanted: State, now: State, sticky: tuple[str, ...] = ()) -> list[str]:
        return [
            f"{name} is {now.get(name, 'gone')!r}, not {wanted.get(name, 'gone')!r}"
            for name in sorted(wanted.keys() | now.keys())
            if wanted.get(name) != now.get(name)
            and not any(re.fullmatch(pattern, name) for pattern in sticky)
        ]


def _say(what: str, wrong: list[str]) -> str:
    return f"{what} {'; '.join(wrong[:SHOWN])}" if wrong else ""


def cuts_of(place: SandboxPart, points: Mapping[SandboxPart, int]) -> Iterator[Cut]:
    """Yield every cut of a place."""
    for point in range(1, points.get(place, 0) + 1):
        for when in WHENS:
            for how in HOWS:
                if place != "daemon" or how != "kill worker":
                    yield Cut(place, point, when, how)


async def walk(
    case: Case,
    directory: Path,
    report: Report,
    *,
    long: bool = False,
    share: float = 1.0,
    seed: int = 0,
) -> None:
    """Cut one case everywhere, or (`share`) at some places; `long`: back from every place too."""
    chance, dice = Chance(), random.Random(f"{seed} {case.name}")
    settings = SETTINGS.but(trash_retention_s=case.retention_s)
    with chance.instead(), mock.patch("zfsilod.requests.sync.REPAIR_PAUSES_S", (0,)):
        async with machine(directory, settings) as built:
            bench = Bench(case, built, chance)
            await bench.prepare()
            backs: list[tuple[int, Cut]] = []  # cuts after which there is a rollback: its points
            for cut in (*cuts_of("daemon", bench.points), *cuts_of("run", bench.points)):
                if dice.random() <= share:
                    await _try(bench, report, cut)
                    backs.append((built.saw.points["rollback"], cut))
            backs = [each for each in backs if each[0] and each[1].how in ("error", "kill worker")]
            for points, first in backs if long else sorted(backs, key=lambda b: b[0])[-1:]:
                for cut in cuts_of("rollback", {"rollback": points}):
                    if dice.random() <= share:
                        await _try(bench, report, first, cut)


async def _try(bench: Bench, report: Report, *cuts: Cut) -> None:
    problem = await bench.cut(*cuts)
    where = f"{bench.case.name} ({', then '.join(map(str, cuts))}): "
    report.case(
        bench.case.request.kind, f"{cuts[-1].place}: {cuts[-1].how}", problem and where + problem
    )


def run(report: Report, *, size: Size, seed: int) -> None:
    """Walk through all cases; when `short`, only the longest rollback of each case is cut."""
    logging.disable(logging.ERROR)  # of the daemon, which tells of each failure
    for case in CASES:
        before = report.passed.total()
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(walk(case, Path(directory), report, long=size != "short", seed=seed))
        report.say(f"{case.name}: {report.passed.total() - before} passed")
    logging.disable(logging.NOTSET)

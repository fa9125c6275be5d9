"""Through service and store: a part of tests/crash/matrix.py, and what it has found."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.crash.cases import CASES, Case, requests
from tests.crash.life import Chance, machine
from tests.crash.matrix import Bench, cuts_of, walk
from tests.crash.report import Report
from tests.crash.saw import Cut
from tests.doubles import SETTINGS
from zfsilod.model.records import Operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SEED = int(os.environ.get("ZFSILO_SEED", "20260101"))
SHARE = float(os.environ.get("ZFSILO_CRASH_SHARE", "0.1"))


def case_named(name: str) -> Case:
    return next(each for each in CASES if each.name == name)


@pytest.fixture
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """The bench of one case, prepared."""
    chance = Chance()
    with chance.instead(), mock.patch("zfsilod.requests.sync.REPAIR_PAUSES_S", (0,)):
        async with machine(tmp_path, SETTINGS) as built:
            made = Bench(case_named(request.param), built, chance)
            await made.prepare()
            yield made


def test_every_verb_has_a_case() -> None:
    without = {each.kind for each in requests()} - {each.request.kind for each in CASES}
    assert not without, f"give these requests a case in tests/crash/cases.py: {without}"


@pytest.mark.parametrize("case", CASES, ids=lambda each: each.name)
async def test_some_points_of_every_case(case: Case, tmp_path: Path) -> None:
    """All points are cut by `make test`, and all rollbacks of all of them by `make crash`."""
    report = Report()
    await walk(case, tmp_path, report, share=SHARE, seed=SEED)
    assert not report.failed, f"seed {SEED}, see above"


@pytest.mark.parametrize("bench", ["publish"], indirect=True)
async def test_what_a_cut_rollback_left_half_undone_is_undone(bench: Bench) -> None:
    first = Cut("run", bench.points["run"] - 2, "after", "error")
    await bench.cut(first)
    points = bench.machine.saw.points["rollback"]
    for cut in cuts_of("rollback", {"rollback": points}):
        if cut.how == "error":
            assert await bench.cut(first, cut) == ""


@pytest.mark.parametrize("bench", ["publish", "disconnect"], indirect=True)
async def test_what_is_done_stays_done_when_its_last_save_fails_late(bench: Bench) -> None:
    assert await bench.cut(Cut("run", bench.points["run"], "after", "error")) == ""
    assert bench.machine.operations()[-1].state == "DONE"


@pytest.mark.parametrize("bench", ["fence"], indirect=True)
async def test_a_fence_that_failed_in_the_middle_is_finished(bench: Bench) -> None:
    for cut in cuts_of("run", bench.points):
        if cut.how == "error":
            assert await bench.cut(cut) == ""


@pytest.mark.parametrize("bench", ["sync-all"], indirect=True)
async def test_who_waits_for_a_batch_hears_of_each_of_its_ends(bench: Bench) -> None:
    """The first hint comes when one operation has ended and the next one's rollback was killed."""
    cuts = Cut("run", 11, "after", "kill worker"), Cut("rollback", 1, "before", "kill worker")
    assert await bench.cut(*cuts) == ""


async def test_an_operation_that_waits_for_room_in_the_store_is_not_lost(tmp_path: Path) -> None:
    """The mark of a remote move cannot be saved at first: the watchman makes it again."""
    async with machine(tmp_path) as built:
        for request in case_named("stage").before:
            await built.house.do(request)
        await built.settle()
        built.saw.set(Cut("daemon", 5, "before", "error"))
        await built.carry_out(case_named("stage").submit)
        with built.store.read() as txn:
            ended = {each.kind: each.state for each in txn.scan(Operation)}
        assert ended["stage"] == "DONE"

"""A random share of the crash matrix, and the faults that once showed a defect."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.crash.cases import CASES, Case, requests
from tests.crash.fault_injector import Fault
from tests.crash.matrix import CaseRunner, faults_in, inject_faults
from tests.crash.randomness import CountedRandomness
from tests.crash.report import CrashReport
from tests.crash.restored_store import restore_at_every_point
from tests.crash.simulated_machine import simulated_machine
from tests.service_fixture import SETTINGS
from zfsilod.model.records import Operation
from zfsilod.requests.hosts import UpdateHost
from zfsilod.requests.volumes import UpdateVolume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SEED = int(os.environ.get("ZFSILO_SEED", "20260101"))
SHARE = float(os.environ.get("ZFSILO_CRASH_SHARE", "0.1"))


ACCESS = (
    "publish-renamed",
    "rotate-secrets",
    "rotate-secrets-forced",
    "unpublish-all",
    "update-host-machine",
    "update-hosts",
    "nvme-rotate-secrets",
    "nvme-rotate-secrets-forced",
    "nvme-unpublish-all",
    "nvme-fence-one",
    "nvme-update-host-machine",
)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.fixture
async def runner(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[CaseRunner]:
    """The prepared runner of one case."""
    randomness = CountedRandomness()
    with randomness.patched(), mock.patch("zfsilod.service.supervisor.REPAIR_PAUSES_S", (0,)):
        async with simulated_machine(tmp_path, SETTINGS) as machine:
            case_runner = CaseRunner(case_named(request.param), machine, randomness)
            await case_runner.prepare()
            yield case_runner


def test_every_request_has_a_case() -> None:
    without = {kind.kind for kind in requests()} - {case.request.kind for case in CASES}
    assert not without, f"add a case of these requests to tests/crash/cases.py: {without}"


def test_every_field_of_access_has_a_case() -> None:
    """The fields of updates that decide who has access, beside the requests that only do that."""
    fields: dict[str, set[str]] = {"update-host": set(), "update": set()}
    for case in CASES:
        if isinstance(case.request, UpdateHost | UpdateVolume):
            fields[case.request.kind] |= set(case.request.mask)
    assert fields["update-host"] >= {"iqn", "machine"}
    assert fields["update"] >= {"hosts"}


async def test_an_old_store_brings_no_former_access_back(tmp_path: Path) -> None:
    """`make crash` does this with every request."""
    report = CrashReport()
    for name in ACCESS:
        await restore_at_every_point(case_named(name), tmp_path / name, report)
    assert not report.failed, "see above"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_some_points_of_every_case(case: Case, tmp_path: Path) -> None:
    """`make test` runs all points, `make crash` also the rollbacks after all of them."""
    report = CrashReport()
    await inject_faults(case, tmp_path, report, share=SHARE, seed=SEED)
    assert not report.failed, f"seed {SEED}, see above"


@pytest.mark.parametrize("runner", ["publish"], indirect=True)
async def test_a_rollback_continues_after_an_error_at_any_point(runner: CaseRunner) -> None:
    first = Fault("run", runner.points["run"] - 2, "after", "error")
    await runner.inject(first)
    points = runner.machine.injector.points["rollback"]
    for fault in faults_in("rollback", {"rollback": points}):
        if fault.how == "error":
            assert await runner.inject(first, fault) == ""


@pytest.mark.parametrize("runner", ["publish", "disconnect"], indirect=True)
async def test_an_error_after_the_last_save_does_not_undo_the_operation(runner: CaseRunner) -> None:
    assert await runner.inject(Fault("run", runner.points["run"], "after", "error")) == ""
    assert runner.machine.operations()[-1].state == "DONE"


@pytest.mark.parametrize("runner", ["fence"], indirect=True)
async def test_a_fence_is_finished_after_an_error_at_any_point(runner: CaseRunner) -> None:
    for fault in faults_in("run", runner.points):
        if fault.how == "error":
            assert await runner.inject(fault) == ""


@pytest.mark.parametrize("runner", ["update-all"], indirect=True)
async def test_what_a_rollback_reverted_before_a_reboot_is_done_again(runner: CaseRunner) -> None:
    """The reboot is between a reversion and its save; the change of access is finished then."""
    killed = Fault("run", 8, "before", "kill worker")
    for fault in faults_in("rollback", {"rollback": 6}):
        if fault.how == "reboot":
            assert await runner.inject(killed, fault) == ""


@pytest.mark.parametrize("runner", ["sync-all"], indirect=True)
async def test_waiters_of_a_batch_are_notified_of_each_end(runner: CaseRunner) -> None:
    """The first hint comes when one operation has ended and the rollback of the next is killed."""
    faults = Fault("run", 11, "after", "kill worker"), Fault("rollback", 1, "before", "kill worker")
    assert await runner.inject(*faults) == ""


async def test_the_supervisor_resumes_an_operation_after_a_full_store(tmp_path: Path) -> None:
    """The first save of a remote action fails; the supervisor performs the action again."""
    async with simulated_machine(tmp_path) as machine:
        for request in case_named("stage").before:
            await machine.fixture.do(request)
        await machine.settle()
        machine.injector.set(Fault("daemon", 5, "before", "error"))
        await machine.carry_out(case_named("stage").submit)
        with machine.store.read() as txn:
            states = {operation.kind: operation.state for operation in txn.scan(Operation)}
        assert states["stage"] == "DONE"


@pytest.mark.parametrize("runner", ["tls-fence", "nvme-fence-one"], indirect=True)
async def test_a_removal_is_repeated_whole_when_its_rollback_was_killed(runner: CaseRunner) -> None:
    """A fence had removed the ACL, and not yet the rest of it, when it was stopped."""
    killed = Fault("rollback", 1, "after", "kill worker")
    for fault in faults_in("run", {"run": runner.points["run"] - 2}):
        if (fault.when, fault.how) == ("after", "error"):
            assert await runner.inject(fault, killed) == "", fault

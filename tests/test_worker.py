"""The two loops, cut before and after every effect and every save, in run and in rollback."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.examples import PLANS, VOLUME, Example, operation
from tests.worker_rig import Killed, WorkerRig, lasting, not_sticky
from zfsilod.engine import plans, worker
from zfsilod.engine.groups import host_step
from zfsilod.engine.step import HostStep
from zfsilod.model.errors import CommandFailed, Conflict
from zfsilod.model.records import Operation, RemoteStep

if TYPE_CHECKING:
    from zfsilod.model.words import ActionStatus

SEED = int(os.environ.get("ZFSILO_SEED", "20260101"))
HISTORIES = int(os.environ.get("ZFSILO_HISTORIES", "2500"))
TALLY: Counter[str] = Counter()


def start(example: Example) -> tuple[WorkerRig, dict[str, Any]]:
    """Return a machine on which an example's operation is stored, and the facts before it."""
    machine = WorkerRig()
    before = machine.prepare(example)
    machine.save(operation(example))
    return machine, before


def finish(machine: WorkerRig) -> Operation:
    """Do remote actions as the daemon, the others as the worker, until the operation ends."""
    machine.cut_at = 0
    for _attempt in range(10):
        stored = machine.operation
        if stored.ended:
            return stored
        if stored.state == "RUNNING" and stored.boot_id == machine.boot_id:
            machine.run()
        elif stored.state == "WAITING":
            pass_remote(machine)
        else:
            machine.rollback()
    raise AssertionError(f"never ended: {machine.operation}")


def pass_remote(machine: WorkerRig) -> None:
    """Mark the remote action that the operation waits for as done."""
    stored = machine.operation
    index = next(i for i, action in enumerate(stored.actions) if action.status == "PENDING")
    assert isinstance(stored.actions[index].step, RemoteStep)
    machine.save(stored.with_status(index, "DONE").but(state="RUNNING"))


def check_end(machine: WorkerRig, before: dict[str, Any], rebooted: bool) -> None:
    """Assert that the operation is done, or that the host is as before it."""
    ended = machine.operation
    facts = machine.host.facts.snapshot()
    if ended.state == "DONE":
        for action in ended.actions:
            gone = rebooted and (action.step.volatile or action.step.sticky)
            if isinstance(action.step, HostStep) and not gone:
                assert action.step.probe(machine.host) == action.up, f"not so: {action}"
        return
    assert ended.state == "ROLLED_BACK"
    # A rollback closes no portal of a target that was there before: it may have clients.
    for name in [name for name in facts if name.startswith("portals:")]:
        if name not in before and name.replace("portals:", "target:") in before:
            del facts[name]
    if rebooted:
        facts, before = lasting(facts), lasting(before)
    assert not_sticky(facts) == not_sticky(before)


def points_of(example: Example) -> int:
    """Count the points of an example's whole run."""
    machine, _before = start(example)
    machine.inject(0, "before", "kill")
    for _turn in range(5):
        if not machine.operation.ended:
            machine.run()
        if machine.operation.state == "WAITING":
            pass_remote(machine)
    return machine.points


@pytest.mark.parametrize("example", PLANS, ids=lambda example: example.name)
def test_every_plan_runs_to_its_end(example: Example) -> None:
    machine, before = start(example)
    assert finish(machine).state == "DONE"
    check_end(machine, before, rebooted=False)


@pytest.mark.parametrize("example", PLANS, ids=lambda example: example.name)
def test_every_point_of_run_cut_once(example: Example) -> None:
    for point in range(1, points_of(example) + 1):
        for when in ("before", "after"):
            for how in ("kill", "error"):
                machine, before = start(example)
                machine.inject(point, when, how)
                _run_once(machine)
                _recover(machine)
                check_end(machine, before, rebooted=False)
                TALLY[machine.operation.state] += 1


def _run_once(machine: WorkerRig) -> None:
    """Run through remote actions until the end or the cut; after a kill nothing continues."""
    with contextlib.suppress(Killed):
        while machine.run() and machine.operation.state == "WAITING":
            pass_remote(machine)


def _recover(machine: WorkerRig) -> None:
    """Roll back an operation that has not ended, as OnFailure= and the daemon do."""
    machine.cut_at = 0
    for _attempt in range(3):
        if not machine.operation.ended:
            machine.rollback()
    assert machine.operation.ended, f"needs repair for ever: {machine.operation}"


@pytest.mark.timeout(600)  # of a machine that has other work: it takes 20 s
@seed(SEED)
@settings(
    max_examples=HISTORIES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    example=st.sampled_from(PLANS),
    standing=st.sets(st.integers(0, 12)),
    cuts=st.lists(
        st.tuples(
            st.integers(1, 40),
            st.sampled_from(("before", "after")),
            st.sampled_from(("kill", "error")),
            st.booleans(),
        ),
        max_size=4,
    ),
)
def test_histories(
    example: Example, standing: set[int], cuts: list[tuple[int, str, str, bool]]
) -> None:
    """Some facts are true before; then run and every rollback are cut, with reboots in between."""
    machine, _before = start(example)
    before = _stand(machine, example, standing)
    rebooted = False
    for index, (point, when, how, reboot) in enumerate(cuts):
        machine.inject(point, when, how)
        if machine.operation.ended:
            break
        if index == 0:
            _run_once(machine)
        else:
            machine.rollback()
        if reboot:
            rebooted = True
            machine.reboot()
    machine.cut_at = 0
    if not cuts:
        finish(machine)
    _recover(machine)
    check_end(machine, before, rebooted)


def _stand(machine: WorkerRig, example: Example, standing: set[int]) -> dict[str, Any]:
    """Do the first actions of an example before its operation starts, and return all facts."""
    for index in sorted(standing):
        if index < len(example.actions) and index == len(_prefix(machine, example)):
            action = example.actions[index]
            if isinstance(action.step, HostStep):
                (action.step.do if action.up else action.step.undo)(machine.host)
    return machine.host.facts.snapshot()


def _prefix(machine: WorkerRig, example: Example) -> list[HostStep]:
    steps = []
    for action in example.actions:
        if not isinstance(action.step, HostStep) or action.step.probe(machine.host) != action.up:
            break
        steps.append(action.step)
    return steps


def test_histories_are_many() -> None:
    print(f"seed {SEED}, {HISTORIES} histories, single cuts: {dict(TALLY)}")
    assert HISTORIES >= 2000


def example_named(name: str) -> Example:
    return next(example for example in PLANS if example.name == name)


def statuses(machine: WorkerRig) -> list[ActionStatus]:
    return [action.status for action in machine.operation.actions]


def test_what_was_true_before_is_unchanged_and_never_reverted() -> None:
    machine, before = start(example_named("publish"))
    first = machine.operation.actions[0].step
    assert isinstance(first, HostStep)
    first.do(machine.host)
    machine.inject(5, "after", "error")
    machine.run()
    assert statuses(machine)[0] == "UNCHANGED"
    machine.cut_at = 0
    machine.rollback()
    assert statuses(machine)[0] == "UNCHANGED"
    assert first.probe(machine.host)
    assert len(machine.host.facts.snapshot()) == len(before) + 1


def test_a_started_action_is_reverted_whatever_its_probe_says() -> None:
    machine, before = start(example_named("publish"))
    machine.inject(2, "after", "kill")  # the first of two effects of the backstore
    machine.run()
    assert statuses(machine)[0] == "STARTED"
    assert machine.host.facts.snapshot() != before
    machine.cut_at = 0
    machine.rollback()
    assert machine.host.facts.snapshot() == before


def test_past_a_final_action_it_rolls_forward() -> None:
    machine, _before = start(example_named("disconnect"))
    machine.inject(4, "after", "kill")  # logged out, not yet marked done
    machine.run()
    _recover(machine)
    assert machine.operation.state == "DONE"


def test_a_final_action_that_failed_cleanly_is_rolled_back() -> None:
    machine, before = start(example_named("delete"))
    machine.inject(2, "before", "error")  # zfs destroy refused, and the zvol is there
    machine.run()
    _recover(machine)
    assert machine.operation.state == "ROLLED_BACK"
    assert machine.host.facts.snapshot() == before


def test_a_filesystem_stays_after_a_rollback() -> None:
    machine, before = start(example_named("stage"))
    machine.run()
    pass_remote(machine)
    machine.run()
    machine.save(machine.operation.but(state="FAILED"))
    _recover(machine)
    made = set(machine.host.facts.snapshot()) - set(before)
    assert {name.partition(":")[0] for name in made} == {"content"}


def test_what_a_rollback_reverted_before_a_reboot_is_done_again() -> None:
    """The reboot leaves an operation to be finished, whose rollback had begun."""
    machine = WorkerRig()
    machine.prepare(example_named("count-epoch"))
    (counted,) = example_named("count-epoch").actions
    (other,) = example_named("properties").actions
    both = Example(name="both", before=(), actions=(counted, other))
    machine.save(operation(both))
    assert machine.run()
    done = machine.operation
    reverted = done.but(state="RUNNING").with_status(1, "REVERTED")
    machine.save(reverted)
    assert isinstance(other.step, HostStep)
    other.step.undo(machine.host)
    machine.reboot()
    assert machine.rollback()
    assert machine.operation.state == "DONE"
    assert other.step.probe(machine.host)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", range(1, 7))
def test_a_reboot_within_a_rollback_leaves_all_or_nothing(point: int, when: str) -> None:
    """It may stop the rollback between a reversion and its save."""
    machine = WorkerRig()
    machine.prepare(example_named("count-epoch"))
    counted = example_named("count-epoch").actions
    compression = plans.properties(VOLUME, {"compression": "zstd"})
    sync = plans.properties(VOLUME, {"sync": "standard"})
    actions = (*counted, *compression, *sync)
    machine.save(operation(Example(name="all", before=(), actions=actions)))
    machine.inject(6, "before", "kill")  # the effect of the last action
    assert not machine.run()
    machine.inject(point, when, "kill")
    machine.rollback()
    machine.inject(0, when, "kill")
    machine.reboot()
    assert machine.rollback()
    holds = {host_step(action).probe(machine.host) for action in (*compression, *sync)}
    assert holds == {machine.operation.state == "DONE"}


def test_a_foreign_thing_is_a_conflict_and_stays() -> None:
    machine = WorkerRig()
    machine.host.facts.memory["zvol:tank/data"] = {"uid": "somebody's", "guid": "1", "size": 1}
    machine.save(operation(example_named("create")))
    with pytest.raises(Conflict, match="does not belong to this volume"):
        worker.run(machine.operation, machine.host, machine.save)
    machine.run()
    _recover(machine)
    assert machine.operation.state == "ROLLED_BACK"
    assert machine.host.facts.get("zvol:tank/data")["uid"] == "somebody's"


def test_a_rollback_that_fails_needs_repair_and_heals() -> None:
    machine, before = start(example_named("publish"))
    machine.inject(6, "after", "error")
    machine.run()
    for point in range(1, 20):  # to the first effect: a rollback that is killed at a save goes on
        machine.inject(point, "before", "error")
        assert not machine.rollback()
        if machine.operation.state == "NEEDS_REPAIR":
            break
    assert machine.operation.state == "NEEDS_REPAIR"
    machine.cut_at = 0
    assert machine.rollback()
    assert machine.host.facts.snapshot() == before


def test_the_saw_cuts() -> None:
    machine, _before = start(example_named("create"))
    machine.inject(2, "before", "error")
    with pytest.raises(CommandFailed):
        worker.run(machine.operation, machine.host, machine.save)

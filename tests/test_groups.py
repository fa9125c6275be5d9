"""Groups: actions that follow each other are probed together, and marked in one save."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import PLANS, Example, operation
from tests.worker_rig import WorkerRig
from zfsilod.engine import groups, worker
from zfsilod.engine.step import HostStep
from zfsilod.engine.steps.access import Acl
from zfsilod.engine.steps.export import Enabled, Target
from zfsilod.engine.worker import Worker
from zfsilod.model.errors import CommandFailed, Unavailable
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service_fixture import ServiceFixture
    from zfsilod.model.records import Operation, Step
    from zfsilod.requests.request import Request
    from zfsilod.storage.transaction import Transaction

SAVES = {
    "publish": 2,
    "unpublish": 3,
    "take-down": 2,
    "fence": 2,
    "connect": 2,
    "stage-clone-readonly": 2,
    "unstage": 3,
    "mount": 2,
}
COMMITS = {"publish": 3, "unpublish": 5, "connect": 3, "stage": 3, "mount": 3}


def example_named(name: str) -> Example:
    return next(example for example in PLANS if example.name == name)


def run(rig: WorkerRig, example: Example) -> list[Operation]:
    """Run an example, and return its saves."""
    saves: list[Operation] = []

    def save(stored: Operation) -> Operation:
        saves.append(stored)
        return stored

    worker.run(operation(example), rig.host, save)
    return saves


def prepared(name: str) -> tuple[WorkerRig, Example]:
    rig, example = WorkerRig(), example_named(name)
    rig.prepare(example)
    return rig, example


@pytest.mark.parametrize("name", SAVES)
def test_an_operation_is_saved_few_times(name: str) -> None:
    saves = run(*prepared(name))
    assert len(saves) == SAVES[name]
    assert saves[-1].state == "DONE"


async def test_a_request_commits_few_times(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for its operation, one for its marks, one for its end."""
    stage = Stage(id="data")
    requests: dict[str, Request[Any]] = {
        "publish": Publish(volume="data", host="take"),
        "connect": Connect(id="data", server="give", volume="data"),
        "stage": stage,
        "mount": MountAt(id="data", path="/srv/data"),
        "unpublish": Unpublish(volume="data", host="take"),
    }
    await fixture.do(CreateVolume(id="data", capacity_bytes=1 << 30))
    commits: dict[str, int] = {}
    change = Store.change

    @contextmanager
    def counted(store: Store) -> Iterator[Transaction]:
        commits[name] = commits.get(name, 0) + 1
        with change(store) as txn:
            yield txn

    for name, request in requests.items():
        if name == "stage":  # the first one makes the filesystem
            await fixture.do(stage, Unstage(id="data"))
        if name == "unpublish":
            await fixture.do(UnmountFrom(id="data"), Unstage(id="data"), Disconnect(id="data"))
            await fixture.do(requests["publish"])
        with monkeypatch.context() as patched:
            patched.setattr(Store, "change", counted)
            await fixture.do(request)
    assert commits == COMMITS


def test_a_guard_and_a_final_action_are_marked_alone() -> None:
    for name in ("unpublish", "disconnect", "fence"):
        rig, example = prepared(name)
        marked = [
            [index for index, action in enumerate(stored.actions) if action.status == "STARTED"]
            for stored in run(rig, example)
        ]
        alone = [n for n, action in enumerate(example.actions) if not groups.may_lead(action)]
        assert all(len(group) <= 1 or not set(alone) & set(group) for group in marked)


def test_what_is_lasting_or_sticky_is_only_the_first_of_a_group() -> None:
    for example in PLANS:
        rig = WorkerRig()
        rig.prepare(example)
        for stored in run(rig, example):
            group = [action.step for action in stored.actions if action.status == "STARTED"]
            assert all(step.volatile and not step.sticky for step in group[1:])


def test_a_fact_that_an_earlier_action_of_the_group_removes_is_made_again() -> None:
    rig, example = prepared("publish")
    target = next(s.target for s in steps_of(example) if isinstance(s, Enabled))
    rig.host.facts.effect(f"enabled:{target}", True)
    add = rig.host.lio.add_target

    def add_and_disable(target: str) -> None:
        add(target)
        rig.host.facts.effect(f"enabled:{target}", None)

    rig.host.lio.add_target = add_and_disable  # type: ignore[method-assign]
    saves = run(rig, example)
    assert rig.host.lio.is_enabled(target)
    (enabled,) = (a for a in saves[-1].actions if isinstance(a.step, Enabled))
    assert enabled.status == "DONE"
    assert any(
        action.status == "STARTED"
        for stored in saves
        for action in stored.actions
        if isinstance(action.step, Enabled)
    ), "it is announced before it is made"


def test_a_probe_that_needs_an_earlier_action_ends_the_group() -> None:
    rig, example = prepared("publish")
    probe = rig.host.lio.has_lun

    def has_lun(target: str, backstore: str) -> bool:
        if not rig.host.lio.has_target(target):
            raise Unavailable("the target does not exist")
        return probe(target, backstore)

    rig.host.lio.has_lun = has_lun  # type: ignore[method-assign]
    assert len(run(rig, example)) == SAVES["publish"] + 1


def test_the_step_that_failed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, example = prepared("publish")
    store = Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
    with store.write() as txn:
        stored = txn.add_operation(operation(example))
    failing = Worker(store, rig.host, stored.id)
    monkeypatch.setattr(rig.host.lio, "add_portals", fail)
    with pytest.raises(CommandFailed):
        failing.run()
    failure = failing.latest.failure
    assert failure is not None
    assert failure.step.startswith("listen at ")
    store.close()


# What a rollback reverts untried


@pytest.mark.parametrize("example", PLANS, ids=lambda example: example.name)
def test_what_was_marked_and_never_tried_is_reverted_without_an_effect(example: Example) -> None:
    """Those behind the first of a group; that one is tried right after the save."""
    rig = WorkerRig()
    rig.prepare(example)
    stored = operation(example)
    for index, action in enumerate(example.actions):
        if not isinstance(action.step, HostStep):
            continue
        before = rig.host.facts.snapshot()
        holds = groups.probe_group(stored, index, rig.host, lambda _index: None)
        for number in reversed(range(index + 1, index + len(holds))):
            untried = example.actions[number]
            if not holds[number - index] and isinstance(untried.step, HostStep):
                groups.change(untried.step, rig.host, up=not untried.up)
        assert rig.host.facts.snapshot() == before
        groups.do_group(
            stored, index, holds[:1], rig.host, lambda saved: saved, lambda _index: None
        )


HALF_MADE = {
    "portals": ("portals:{target}", ["192.0.2.9:3260"]),
    "secrets": ("acl:{target}/{initiator}", "others"),
    "mapped": ("mapped:{target}/{initiator}", "readonly"),
}


@pytest.mark.parametrize("kind", HALF_MADE)
def test_what_is_there_in_another_way_stays_when_it_was_not_tried(kind: str) -> None:
    """The backstore of an export that is in use is gone; the worker is killed when it makes it."""
    rig, example = prepared("publish")
    acl = next(step for step in steps_of(example) if isinstance(step, Acl))
    for step in steps_of(example):
        if isinstance(step, Target | Enabled | Acl):
            step.do(rig.host)
    name, fact = HALF_MADE[kind]
    name = name.format(target=acl.target, initiator=acl.initiator)
    rig.host.facts.effect(name, fact)
    before = rig.host.facts.snapshot()
    rig.save(operation(example))
    rig.inject(2, "before", "kill")  # 1 is the save of the marks, 2 the first effect
    assert not rig.run()
    rig.inject(0, "before", "kill")
    assert rig.rollback()
    assert rig.host.facts.snapshot() == before


def fail(*_args: object) -> None:
    raise CommandFailed("injected")


def steps_of(example: Example) -> list[Step]:
    return [action.step for action in example.actions]

"""Groups of actions that are marked in one save: which may share one, and how they are made.

A save costs two flushes of the disk. It announces the effects of all actions of a group, so that a
rollback may have to revert one that was never tried.
"""

from __future__ import annotations

import time

from zfsilod.engine.step import Guard, HostStep
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host import HostAdapters
    from zfsilod.model.records import Action, Operation
    from zfsilod.model.words import ActionStatus

    Save = Callable[[Operation], Operation]
    At = Callable[[int], None]


def may_lead(action: Action) -> bool:
    """Tell whether an action may be marked together with those after it.

    One that decides whether these may be done, or after which there is no way back, stays alone.
    """
    alone = isinstance(action.step, Guard) or action.final
    return isinstance(action.step, HostStep) and not alone and action.status == "PENDING"


def may_follow(action: Action, host: HostAdapters, *, holds: bool) -> bool:
    """Tell whether an action may be marked before those ahead of it in its group are made.

    If one of them fails, or the worker is killed, it is reverted without having been tried: what
    was true is then made again, which changes nothing; what was not true is undone, which the step
    has to allow.
    """
    return holds or not action.up or host_step(action).safe_untried(host)


def probe_group(operation: Operation, index: int, host: HostAdapters, at: At) -> list[bool]:
    """Probe an action and those that are marked with it; tell for each whether it is so.

    The group ends before an action that cannot be probed yet: it may need those before it.
    """
    at(index)
    first = operation.actions[index]
    holds = [host_step(first).probe(host) == first.up]
    if not may_lead(first):
        return holds
    for action in operation.actions[index + 1 :]:
        step = action.step
        if not step.volatile or step.sticky or not may_lead(action):
            break  # what is lasting could be reverted long after
        try:
            is_so = host_step(action).probe(host) == action.up
            if not may_follow(action, host, holds=is_so):
                break
        except (ZfsiloError, OSError):
            break
        holds.append(is_so)
    return holds


def mark_group(operation: Operation, index: int, holds: list[bool], save: Save) -> Operation:
    """Mark the actions of a group in one save, if anything of it has to be done."""
    before = operation.actions
    marked = tuple(
        action.but(status=_mark(action, is_so=is_so))
        for action, is_so in zip(before[index:], holds, strict=False)
    )
    operation = operation.but(actions=(*before[:index], *marked, *before[index + len(holds) :]))
    return operation if all(holds) else save(operation)


def _mark(action: Action, *, is_so: bool) -> ActionStatus:
    """Return the mark of an action before it is made.

    If a killed run had started one, this operation did it, and a rollback reverts it. What is gone
    may have left a part: a removal keeps its mark until it was repeated.
    """
    if not is_so:
        return "STARTED"
    return _so(action) if action.up else action.status


def _so(action: Action) -> ActionStatus:
    """Return the status of an action whose fact is so without a change in this run."""
    return "DONE" if action.status == "STARTED" else "UNCHANGED"


def do_group(
    operation: Operation, index: int, holds: list[bool], host: HostAdapters, save: Save, at: At
) -> Operation:
    """Make the actions of a group in their order.

    One that was so is probed again, since those before it may have changed it.
    """
    for number, is_so in enumerate(holds, start=index):
        at(number)
        action, since, took_ms = operation.actions[number], time.monotonic(), 0
        step = host_step(action)
        if is_so and not all(holds[: number - index]) and step.probe(host) != action.up:
            operation, is_so = save(operation.with_status(number, "STARTED")), False
        if not is_so:
            change(step, host, up=action.up)
            took_ms = round(1000 * (time.monotonic() - since))
            operation = operation.with_status(number, "DONE", took_ms=took_ms)
        elif not action.up:
            step.undo(host)  # "false" may be half-made: the rest is removed too
            operation = operation.with_status(number, _so(action))
        if action.up:
            made = operation.actions[number].status == "DONE"
            observed = step.observed(host, made=made)
            operation = operation.but(facts=pairs(dict(operation.facts) | observed))
    return operation


def change(step: HostStep, host: HostAdapters, *, up: bool) -> None:
    """Make the fact of a step true or false."""
    if up:
        step.do(host)
    else:
        step.undo(host)


def host_step(action: Action) -> HostStep:
    """Return the step of an action of the worker."""
    assert isinstance(action.step, HostStep), "a remote step is never final, nor in a group"
    return action.step

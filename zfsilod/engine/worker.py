"""zfsilo-worker: runs operations, or rolls them back. The only process that changes the host.

    zfsilo-worker [--state DIR] run UNIT
    zfsilo-worker [--state DIR] rollback UNIT

A unit is named after its one operation, or after the batch whose operations it runs one by one.

`run` and `rollback` are the whole engine. What they rely on:

* a mark is saved before its effect, so a move whose mark is `todo` was never begun;
* probes, do and undo accept every half-made state (host/);
* the claim of the operation keeps everybody else away from its facts.

The process starts for every operation, so it imports no asyncio, no grpc and no D-Bus library.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import zfsilod.engine.steps  # noqa: F401 - registers the tags of steps in the store
from zfsilod.engine.step import HostStep
from zfsilod.model.errors import Busy, Internal, NotFound, ZfsiloError
from zfsilod.model.record import pairs
from zfsilod.model.records import Action, ActionStatus, Failure, Operation, failure_of
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from zfsilod.host import Host

STATE_DIRECTORY = Path("/var/lib/zfsilo")
LOCK_DIRECTORY = Path("/run/zfsilo/op")
LOCK_DEADLINE_S = 60

Save = Callable[[Operation], Operation]


def run(operation: Operation, host: Host, save: Save) -> Operation:
    """Make the moves that are not made yet; stop before a remote one, which is the daemon's."""
    for index, action in enumerate(operation.actions):
        if action.status not in ("PENDING", "STARTED"):
            continue
        if not isinstance(action.step, HostStep):
            return save(operation.but(state="WAITING"))
        took_ms, since = 0, time.monotonic()
        if action.step.probe(host) == action.up:
            # What a killed run had begun and finished is ours to turn back; the rest was so before.
            status: ActionStatus = "DONE" if action.status == "STARTED" else "UNCHANGED"
            if not action.up:
                action.step.undo(host)  # "not so" may be half so: what is left of it goes too
        else:
            operation = save(operation.with_status(index, "STARTED"))
            _make(action.step, host, up=action.up)
            status = "DONE"
            took_ms = round(1000 * (time.monotonic() - since))
        operation = operation.with_status(index, status, took_ms=took_ms)
        if action.up:
            observed = action.step.observed(host, made=status == "DONE")
            operation = operation.but(facts=pairs(dict(operation.facts) | observed))
    return save(operation.but(state="DONE"))


def rollback(operation: Operation, host: Host, save: Save, *, boot_id: str = "") -> Operation:
    """Turn back what this operation made, last first, or finish it past its point of no return."""
    if past_return(operation, host):
        forward = forget_volatile(operation, boot_id, "PENDING")
        return run(forward.but(state="RUNNING"), host, save)
    operation = forget_volatile(operation, boot_id, "REVERTED")
    for index, action in reversed(list(enumerate(operation.actions))):
        if action.status not in ("STARTED", "DONE"):
            continue
        step = action.step
        if isinstance(step, HostStep) and not step.sticky:
            # Whatever its probe says, a begun move may be half made, and what a rollback that was
            # cut here had begun to remove may be half gone: "not so" is turned back all the same.
            if action.status == "STARTED" or step.probe(host) == action.up or action.up:
                _make(step, host, up=not action.up)
        operation = save(operation.with_status(index, "REVERTED"))
    return save(operation.but(state="ROLLED_BACK"))


def past_return(operation: Operation, host: Host) -> bool:
    """Tell whether a final move was begun, unless it failed cleanly and nothing came of it."""
    finals = [
        action
        for action in operation.actions
        if action.final and action.status in ("STARTED", "DONE")
    ]
    if any(action.status == "DONE" for action in finals):
        return True
    if operation.failure is None:
        return bool(finals)
    return any(not m.step.atomic or _host_step(m).probe(host) == m.up for m in finals)


def forget_volatile(operation: Operation, boot_id: str, status: ActionStatus) -> Operation:
    """Give the volatile moves of an earlier boot another mark: the reboot has undone them."""
    if operation.boot_id == boot_id:
        return operation
    actions = tuple(
        action.but(status=status) if action.step.volatile and action.status != "PENDING" else action
        for action in operation.actions
    )
    return operation.but(actions=actions, boot_id=boot_id)


def _make(step: HostStep, host: Host, *, up: bool) -> None:
    if up:
        step.do(host)
    else:
        step.undo(host)


def _host_step(action: Action) -> HostStep:
    assert isinstance(action.step, HostStep), "a remote step is never final"
    return action.step


# The process


class Worker:
    """One operation with its store and its host, and what happens when a loop fails."""

    def __init__(self, store: Store, host: Host, operation_id: str) -> None:
        self.store = store
        self.host = host
        self.latest = self._load(operation_id)

    def _load(self, operation_id: str) -> Operation:
        with self.store.read() as txn:
            operation = txn.get(Operation, operation_id)
        if operation is None:
            raise NotFound(f"there is no operation {operation_id}")
        return operation

    def save(self, operation: Operation) -> Operation:
        """Save a mark, or with the end of the operation its records, in one transaction."""
        with self.store.write() as txn:
            self.latest = (
                txn.finish(operation, operation.state) if operation.ended else txn.put(operation)
            )
        return self.latest

    def run(self) -> None:
        """Run the operation; a failure is saved for the rollback, which systemd starts."""
        if self.latest.state != "RUNNING":
            return
        try:
            run(self.latest, self.host, self.save)
        except Exception as error:
            self._look_again()
            if not self.latest.ended:
                self.save(self.latest.but(state="FAILED", failure=self._failure(error)))
            raise

    def rollback(self) -> None:
        """Roll the operation back; when that fails too it needs repair, and keeps its claims."""
        if self.latest.ended:
            return
        try:
            rollback(self.latest, self.host, self._save_rollback, boot_id=read_boot_id())
        except Exception as error:
            self._look_again()
            if not self.latest.ended:
                failure = self.latest.failure or self._failure(error)
                attempts = self.latest.attempts + 1
                self.save(self.latest.but(state="NEEDS_REPAIR", failure=failure, attempts=attempts))
            raise

    def _look_again(self) -> None:
        """Read the operation anew: a save that failed may have been made all the same."""
        self.latest = self._load(self.latest.id)

    def _save_rollback(self, operation: Operation) -> Operation:
        if operation.state == "ROLLED_BACK" and operation.failure is None:
            operation = operation.but(failure=_stopped())
        return self.save(operation)

    def _failure(self, error: Exception) -> Failure:
        action = self.latest.next_action
        step = action.description if action else ""
        if isinstance(error, ZfsiloError):
            return failure_of(error, step)
        message = f"a defect in step {step!r}; the journal of this operation has the traceback"
        return Failure(name=Internal.__name__, message=message, step=step)


def work(store: Store, host: Host, unit: str, command: str) -> list[str]:
    """Run or roll back what a unit is for; one failure stops no other. Return the complaints.

    Raises NotFound when there is nothing of that name to run.
    """
    with store.read() as txn:
        found = txn.of_unit(unit)
    if not found and command == "run":
        raise NotFound(f"there is no operation {unit}")
    if found and found[0].batch:
        host = host.surveyed(_datasets(found))  # one look at the pool serves them all
    complaints = [_work_one(Worker(store, host, each.id), command) for each in found]
    return [each for each in complaints if each]


def _work_one(worker: Worker, command: str) -> str:
    try:
        worker.run() if command == "run" else worker.rollback()
    except ZfsiloError as error:
        return f"{worker.latest.title}: {error.message}"
    except Exception:
        import traceback  # 10 ms, which only a defect is worth

        return traceback.format_exc()
    return ""


def _datasets(operations: list[Operation]) -> tuple[str, ...]:
    steps = (action.step for operation in operations for action in operation.actions)
    return tuple(dict.fromkeys(name for step in steps for name in step.resources().datasets))


def _attempt(state: Path, unit: str, command: str) -> list[str]:
    """Open the store, take the unit's lock, and do what is asked; return the complaints."""
    store = Store(state)
    try:
        lock = _lock(LOCK_DIRECTORY if store.host == "real" else state / "op", unit)
    except Busy as error:
        if command == "rollback":
            _tell_stuck(store, unit, error)
        raise
    return work(store, _open_host(store, state, lock), unit, command)


def _tell_stuck(store: Store, unit: str, error: Busy) -> None:
    """Show everybody that a rollback cannot begin: it is tried again, as one that failed."""
    with store.write() as txn:
        for each in txn.of_unit(unit):
            if not each.ended:
                failure = each.failure or failure_of(error, "lock the operation")
                attempts = each.attempts + 1
                txn.put(each.but(state="NEEDS_REPAIR", failure=failure, attempts=attempts))


def _stopped() -> Failure:
    """Return the failure of a worker that could not say why it ended: systemd knows."""
    result = os.environ.get("MONITOR_SERVICE_RESULT", "the daemon or the host went down")
    return Failure(
        name=Busy.__name__,
        reason="STOPPED",
        message=f"the operation was stopped before its end ({result}) and taken back",
    )


def _lock(directory: Path, operation_id: str) -> int:
    """Take the operation's lock; every tool inherits it, so a tool that outlives us holds it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / f"{operation_id}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    with deadline(LOCK_DEADLINE_S, f"a tool of operation {operation_id} still runs"):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextmanager
def deadline(seconds: int, message: str) -> Iterator[None]:
    """Raise Busy (reason STUCK) when the body takes longer; in the main thread only."""

    def ring(_signal: int, _frame: object) -> None:
        raise Busy(message, reason="STUCK")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _open_host(store: Store, state: Path, lock: int) -> Host:
    if store.host == "simulated":
        from zfsilod.host.fake import FakeHost

        return FakeHost(state / "facts.json", chap=store.chap)
    from zfsilod.host.real import real_host

    return real_host(store.chap, inherit=(lock,))


def read_boot_id() -> str:
    """Return the kernel's id of this boot; in a sandbox without /proc/sys the unit passes it on."""
    passed = os.environ.get("ZFSILO_BOOT_ID")
    if passed:
        return passed.replace("-", "")
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


def main() -> int:
    """Run or roll back what a unit is for; exit 1 tells systemd to start the rollback."""
    arguments = sys.argv[1:]
    state = STATE_DIRECTORY
    if arguments[:1] == ["--state"]:
        state, arguments = Path(arguments[1]), arguments[2:]
    if len(arguments) != 2 or arguments[0] not in ("run", "rollback"):
        sys.stderr.write("usage: zfsilo-worker [--state DIR] run|rollback UNIT\n")
        return 2
    try:
        complaints = _attempt(state, arguments[1], arguments[0])
    except ZfsiloError as error:
        complaints = [error.message]
    for complaint in complaints:
        sys.stderr.write(f"{complaint}\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

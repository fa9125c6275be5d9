"""zfsilo-worker: runs operations or rolls them back. The only process that changes the host.

    zfsilo-worker [--state DIR] run UNIT
    zfsilo-worker [--state DIR] rollback UNIT
    zfsilo-worker [--state DIR] blocks TICKET ...    see block_reader.py
    zfsilo-worker [--state DIR] send TICKET ...      see stream_sender.py

A unit is named after its one operation, or after the batch whose operations it runs one by one.

The functions `run` and `rollback` are the whole engine. They rely on three rules:

* a status is saved before the effect that it announces, so a PENDING action has had no effect;
  actions that follow each other are marked in one save where none of them may do harm untried;
* `probe`, `do` and `undo` accept every half-made state of their step (host/);
* the claims of an operation keep all other operations away from its resources.

A worker starts for every operation, and imports only what the steps of that operation need: the
class of a step by its tag (engine/steps/), an adapter at its first use (host/real.py), and none of
the modules that model/lean.py replaces. tests/test_worker_imports.py has the list of each request.
"""

from __future__ import annotations

import os
import sys

import zfsilod.engine.steps  # noqa: F401 - makes the classes of steps for the store
from zfsilod.engine.groups import do_group, host_step, mark_group, probe_group
from zfsilod.engine.limits import WorkerLimits, read_limits
from zfsilod.engine.locks import LOCK_DIRECTORY, lock_unit, remove_lock
from zfsilod.engine.step import CUT, KEPT, Guard, HostStep
from zfsilod.model.errors import (
    Busy,
    Conflict,
    FailedPrecondition,
    Internal,
    NotFound,
    PermissionDenied,
    ZfsiloError,
    cancelled,
    disk_error,
    revive,
)
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import pairs
from zfsilod.model.records import Failure, Operation, RemoteStep, failure_of
from zfsilod.storage.paths import read_text
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host import HostAdapters
    from zfsilod.model.records import Step
    from zfsilod.model.words import ActionStatus, OperationState

    Save = Callable[[Operation], Operation]
    Ask = Callable[[str], None]
    At = Callable[[int], None]

STATE_DIRECTORY = "/var/lib/zfsilo"
BLOCKS_WORDS = 8  # the ticket, and the fields of a BlockQuery
SEND_WORDS = 9  # the ticket, and the fields of a SendJob
WORDS = {"run": 1, "rollback": 1, "blocks": BLOCKS_WORDS, "send": SEND_WORDS}


def run(
    operation: Operation,
    host: HostAdapters,
    save: Save,
    report: Save | None = None,
    at: At = lambda _index: None,
) -> Operation:
    """Do the actions that are not done yet; stop before a remote one, which the daemon does.

    `report` lets the daemon do it meanwhile, and returns the operation afterwards. `at` is told the
    index of each action before anything of it is done.
    """
    end = 0
    for index, action in enumerate(operation.actions):
        if index < end or action.status not in ("PENDING", "STARTED"):
            continue
        if not isinstance(action.step, HostStep):
            if report is None or lasts(action.step):
                return save(operation.but(state="WAITING"))
            operation = report(save(operation))
            if operation.state != "RUNNING":
                return operation
            continue
        holds = probe_group(operation, index, host, at)
        end = index + len(holds)
        marked = mark_group(operation, index, holds, save)
        operation = do_group(marked, index, holds, host, save, at)
    if cut := dict(operation.facts).get(CUT):
        operation = operation.but(title=f"{operation.title}; cut off {cut}")
    return save(operation.but(state="DONE"))


def lasts(step: Step) -> bool:
    """Tell whether a remote step may take hours: no worker waits for it in its unit."""
    return isinstance(step, RemoteStep) and step.lasts


def rollback(
    operation: Operation,
    host: HostAdapters,
    save: Save,
    *,
    boot_id: str = "",
    cancelled: bool = False,
    at: At = lambda _index: None,
) -> Operation:
    """Revert the actions that this operation did, last first; finish it if that is impossible.

    An operation that was stopped after its last effect is finished too, and one that a reboot
    stopped after a change of access. Its store may be a backup from that moment: what is complete
    may be in use since, or was withdrawn for a reason.
    """
    if any(action.began for action in operation.actions):
        for action in operation.actions:
            if isinstance(action.step, HostStep):
                action.step.check_current(host)
    complete = not cancelled and is_complete(operation, host)
    stopped = not cancelled and must_finish(operation, host, boot_id)
    if complete or stopped or past_return(operation, host) or has_stayed(operation, host):
        forward = unreverted(forget_volatile(operation, boot_id, "PENDING"))
        forward = without_guards(forward) if complete else forward
        return run(forward.but(state="RUNNING"), host, save, at=at)
    operation = forget_volatile(operation, boot_id, "REVERTED")
    operation = announce_reversal(operation, save)
    for index, action in reversed(list(enumerate(operation.actions))):
        if not action.began:
            continue
        at(index)
        step = action.step
        # A STARTED action may be half done, and a rollback that was killed may have half removed
        # it: it is reverted even if its probe says that nothing is there.
        if isinstance(step, HostStep) and action.up:
            left = step.revert(host)
            operation = operation.but(facts=pairs(dict(operation.facts) | left))
            if KEPT in left:
                operation = operation.with_status(index, "DONE")  # its effect remains
                continue
        elif isinstance(step, HostStep) and not step.sticky:
            if action.status == "STARTED" or not step.probe(host):
                step.do(host)
        operation = save(operation.with_status(index, "REVERTED"))
    return save(operation.but(state="ROLLED_BACK"))


def announce_reversal(operation: Operation, save: Save) -> Operation:
    """Mark all that will be reverted, in one save.

    A reboot may stop the rollback between a reversion and its save, and the next one may finish the
    operation. It must not take for done what was reverted.
    """
    done = [
        index
        for index, action in enumerate(operation.actions)
        if action.status == "DONE" and isinstance(action.step, HostStep)
    ]
    for index in done:
        operation = operation.with_status(index, "STARTED")
    return save(operation) if done else operation


def past_return(operation: Operation, host: HostAdapters) -> bool:
    """Tell whether a final action was started, unless it failed cleanly and changed nothing."""
    finals = [action for action in operation.actions if action.final and action.began]
    if any(action.status == "DONE" for action in finals):
        return True
    if operation.failure is None:
        return bool(finals)
    return any(
        not action.step.atomic or host_step(action).probe(host) == action.up for action in finals
    )


def has_stayed(operation: Operation, host: HostAdapters) -> bool:
    """Tell whether an operation was stopped without a failure, and has made what stays."""
    return operation.failure is None and any(
        isinstance(action.step, HostStep)
        and action.step.stays
        and action.up
        and action.began
        and action.step.probe(host)
        for action in operation.actions
    )


def is_complete(operation: Operation, host: HostAdapters) -> bool:
    """Tell whether an operation was stopped without a failure, and all its facts hold.

    A guard is no fact of the operation: a client that was not logged in then may be now.
    """
    if operation.failure is not None or not operation.actions:
        return False
    try:
        return all(
            action.step.probe(host) == action.up
            if isinstance(action.step, HostStep)
            else action.status == "DONE"
            for action in operation.actions
            if not isinstance(action.step, Guard)
        )
    except (Conflict, FailedPrecondition):
        return False


def without_guards(operation: Operation) -> Operation:
    """Let the guards of a complete operation pass: the steps that they precede are done."""
    return operation.but(
        actions=tuple(
            action.but(status="UNCHANGED") if isinstance(action.step, Guard) else action
            for action in operation.actions
        )
    )


def unreverted(operation: Operation) -> Operation:
    """Let what a rollback reverted before it was stopped be done again."""
    return operation.but(
        actions=tuple(
            action.but(status="PENDING") if action.status == "REVERTED" else action
            for action in operation.actions
        )
    )


def must_finish(operation: Operation, host: HostAdapters, boot_id: str) -> bool:
    """Tell whether a reboot stopped an operation that may have been completed."""
    if operation.failure is not None or operation.boot_id == boot_id:
        return False
    return any(
        isinstance(action.step, HostStep) and action.began and action.step.must_finish(host)
        for action in operation.actions
    )


def forget_volatile(operation: Operation, boot_id: str, status: ActionStatus) -> Operation:
    """Give the volatile actions of an earlier boot this status: the reboot has undone them."""
    if operation.boot_id == boot_id:
        return operation
    actions = tuple(
        action.but(status=status) if action.step.volatile and action.status != "PENDING" else action
        for action in operation.actions
    )
    return operation.but(actions=actions, boot_id=boot_id)


# The process


class Worker:
    """One operation with its store and its host; saves the failure when a loop fails."""

    def __init__(
        self,
        store: Store,
        host: HostAdapters,
        operation_id: str,
        limits: WorkerLimits | None = None,
        ask: Ask | None = None,
    ) -> None:
        self.store = store
        self.host = host
        self.limits = limits  # None: a simulated host
        self.ask = ask  # None: the daemon performs remote steps when the unit has ended
        self.latest = self._load(operation_id)
        self._at: int | None = None  # the index of the action that is being done

    def _load(self, operation_id: str) -> Operation:
        with self.store.read() as txn:
            operation = txn.get(Operation, operation_id)
        if operation is None:
            raise NotFound(f"there is no operation {operation_id}")
        return operation

    def save(self, operation: Operation) -> Operation:
        """Save the operation; when it has ended, its records too, in the same transaction."""
        with self.store.write() as txn:
            if operation.batch and operation.state == "RUNNING" and txn.is_cancelled(operation.id):
                raise cancelled()  # its unit is not stopped, for the sake of the others
            self.latest = (
                txn.finish(operation, operation.state) if operation.ended else txn.put(operation)
            )
        return self.latest

    def run(self) -> None:
        """Run the operation; a failure is saved for the rollback, which systemd starts."""
        if self.latest.state != "RUNNING":
            return
        try:
            self.check_limits()
            report = self.report if self.ask else None
            outcome = run(self.latest, self.host, self.save, report, self.enter)
        except Exception as error:
            self._reload()
            if not self.latest.ended:
                self.save(self.latest.but(state="FAILED", failure=self._failure(error)))
            raise
        failure = outcome.failure
        if outcome.state == "FAILED" and failure is not None:  # the report; the rollback follows
            raise revive(failure.name, failure.message, failure.reason, dict(failure.facts))

    def report(self, operation: Operation) -> Operation:
        """Let the daemon perform the remote step at which an operation is.

        Without an outcome the operation waits, and the daemon resumes it in another unit.
        """
        assert self.ask is not None, "see run"
        self.ask(operation.id)
        self._reload()
        if self.latest.at_server:
            self._take("WAITING")
        return self.latest

    def _take(self, state: OperationState) -> None:
        """Give an operation at a remote step this state, unless the daemon has stored an outcome.

        Afterwards it cannot: the store refuses a change of a former revision.
        """
        with self.store.write() as txn:
            stored = txn.get(Operation, self.latest.id)
            assert stored is not None, "an operation that has not ended is kept"
            self.latest = txn.put(stored.but(state=state)) if stored.at_server else stored

    def enter(self, index: int) -> None:
        """Note which action is done now: several may be marked as started."""
        self._at = index

    def check_limits(self) -> None:
        """Raise PermissionDenied when an action is outside of the limits, before any effect."""
        if self.limits is not None:
            self.limits.check(self.latest.actions)

    def check_ownership(self) -> None:
        """Raise while the store may not be used; afterwards forget that the rollback was held."""
        from zfsilod.engine.steps import ownership  # a run does not need it

        ownership.check_ownership(self.store, self.host, self.latest)
        failure = self.latest.failure
        own = failure is not None and "server" not in dict(failure.facts)  # not that of a peer
        if own and failure is not None and failure.reason in ownership.HOLDS:
            self.latest = self.latest.but(failure=None)

    def rollback(self) -> None:
        """Roll the operation back; if that fails too, it needs repair and keeps its claims."""
        if self.latest.at_server:
            self._take("RUNNING")  # the daemon may still perform the step for a stopped worker
        if self.latest.ended:
            return
        try:
            if self.latest.failure is None or any(action.began for action in self.latest.actions):
                self.check_limits()  # of all: the rollback may also finish the operation
            self.check_ownership()
            with self.store.read() as txn:
                cancelled = txn.is_cancelled(self.latest.id)
            rollback(
                self.latest,
                self.host,
                self._save_rollback,
                boot_id=read_boot_id(),
                cancelled=cancelled,
                at=self.enter,
            )
        except Exception as error:
            self._reload()
            if not self.latest.ended:
                failure = self.latest.failure or self._failure(error)
                self.save(_needs_repair(self.latest, failure))
            raise

    def _reload(self) -> None:
        """Read the operation again: a save that raised may have been committed all the same."""
        self.latest = self._load(self.latest.id)

    def _save_rollback(self, operation: Operation) -> Operation:
        if operation.state == "ROLLED_BACK" and operation.failure is None:
            # Its worker was killed; systemd knows by what.
            result = os.environ.get("MONITOR_SERVICE_RESULT", "the daemon or the host went down")
            message = f"the operation was stopped before its end ({result}) and rolled back"
            failure = Failure(name=Busy.__name__, reason="STOPPED", message=message)
            operation = operation.but(failure=failure)
        kept = dict(operation.facts).get(KEPT, "")
        if operation.state == "ROLLED_BACK" and operation.failure and kept:
            message = f"{operation.failure.message}; {kept}"
            operation = operation.but(failure=operation.failure.but(message=message))
        return self.save(operation)

    def _failure(self, error: Exception) -> Failure:
        at = self._at
        action = self.latest.next_action if at is None else self.latest.actions[at]
        step = action.description if action else ""
        if isinstance(error, ZfsiloError):
            return failure_of(error, step)
        if isinstance(error, OSError) and (shown := disk_error(error)):
            return failure_of(shown, step)
        message = f"internal error in step {step!r}; see the journal of this operation"
        return Failure(name=Internal.__name__, message=message, step=step)


def _needs_repair(operation: Operation, failure: Failure) -> Operation:
    attempts = operation.attempts + 1
    return operation.but(state="NEEDS_REPAIR", failure=failure, attempts=attempts)


def work(
    store: Store,
    host: HostAdapters,
    unit: str,
    command: str,
    limits: WorkerLimits | None = None,
    ask: Ask | None = None,
) -> list[str]:
    """Run or roll back the operations of a unit and return their errors; a failed one stops none.

    Raises NotFound when there is no operation to run.
    """
    with store.read() as txn:
        operations = txn.of_unit(unit)
    if not operations and command == "run":
        raise NotFound(f"there is no operation {unit}")
    if operations and operations[0].batch:
        host = _surveyed(host, operations, limits)
    workers = [Worker(store, host, operation.id, limits, ask) for operation in operations]
    errors = [_work_one(worker, command) for worker in workers]
    return [error for error in errors if error]


def _surveyed(
    host: HostAdapters, operations: list[Operation], limits: WorkerLimits | None
) -> HostAdapters:
    """Return the host with one zfs process for all probes of a batch, if it is within the limits.

    Otherwise each operation is checked, and refused, by itself.
    """
    actions = [action for operation in operations for action in operation.actions]
    if limits is not None:
        try:
            limits.check(actions)
        except PermissionDenied:
            return host
    datasets = (name for action in actions for name in action.step.resources().datasets)
    return host.surveyed(tuple(dict.fromkeys(datasets)))


def _work_one(worker: Worker, command: str) -> str:
    try:
        worker.run() if command == "run" else worker.rollback()
    except ZfsiloError as error:
        return f"{worker.latest.title}: {error.message}"
    except Exception:
        import traceback  # takes 10 ms, and is needed for an internal error only

        return traceback.format_exc()
    return ""


def _attempt(state: str, unit: str, command: str) -> list[str]:
    """Open the store, lock the unit, and carry the command out; return the errors."""
    store = Store(state)
    try:
        return _work_locked(store, state, unit, command)
    finally:
        store.close()


def _work_locked(store: Store, state: str, unit: str, command: str) -> list[str]:
    locks = _lock_folder(store, state)
    try:
        lock = lock_unit(locks, unit)
        limits = read_limits() if store.host == "real" else None
    except ZfsiloError as error:
        if command == "rollback":
            _save_stuck(store, unit, error)
        raise

    def ask(operation_id: str) -> None:
        from zfsilod.engine.report_wait import ask_daemon  # few operations wait

        ask_daemon(locks, operation_id)

    def open_stream(operation_id: str) -> int:
        from zfsilod.engine.stream_link import stream_of  # few operations receive
        from zfsilod.host.replica_protocol import no_stream

        stream = stream_of(locks, operation_id)
        return stream if stream >= 0 else no_stream(operation_id)

    host = _open_host(store, state, lock, open_stream=open_stream)
    errors = work(store, host, unit, command, limits, ask)
    with store.read() as txn:
        if all(operation.ended for operation in txn.of_unit(unit)):
            remove_lock(locks, unit)
    return errors


def _lock_folder(store: Store, state: str) -> str:
    return LOCK_DIRECTORY if store.host == "real" else f"{state}/op"


def _read_blocks(state: str, ticket: str, *words: str) -> list[str]:
    """Send the blocks of a snapshot to the daemon; return the errors."""
    from zfsilod.engine.block_reader import BlockQuery, send_blocks  # operations do not need it

    query = BlockQuery.parsed(list(words))
    return _send_to_daemon(
        state, "blocks", lambda host, limits, at: send_blocks(host, limits, at, ticket, query)
    )


def _send(state: str, ticket: str, *words: str) -> list[str]:
    """Send a snapshot to where the daemon says; return the errors."""
    from zfsilod.engine.stream_sender import send_stream  # operations do not need it
    from zfsilod.model.replica import SendJob

    job = SendJob.parsed(list(words))
    return _send_to_daemon(
        state, "stream", lambda host, limits, at: send_stream(host, limits, at, ticket, job)
    )


def _send_to_daemon(
    state: str, what: str, send: Callable[[HostAdapters, WorkerLimits | None, str], None]
) -> list[str]:
    """Send something to the daemon, with the folder of its sockets; return the errors."""
    store = Store(state)
    try:
        limits = read_limits() if store.host == "real" else None
        send(_open_host(store, state), limits, _lock_folder(store, state))
    except OSError as error:
        return [f"the daemon does not take the {what}: {error}"]
    finally:
        store.close()
    return []


def _save_stuck(store: Store, unit: str, error: ZfsiloError) -> None:
    """Record that a rollback cannot start; it is retried like one that failed."""
    with store.write() as txn:
        for operation in txn.of_unit(unit):
            if not operation.ended:
                failure = operation.failure or failure_of(error, "start the worker")
                txn.put(_needs_repair(operation, failure))


def _open_host(
    store: Store, state: str, *locks: int, open_stream: Callable[[str], int] | None = None
) -> HostAdapters:
    if store.host == "simulated":
        from zfsilod.host.fake import FakeHost

        host = FakeHost(f"{state}/facts.json", chap=store.chap, key_store=store)
        host.open_stream = open_stream
        return host
    from zfsilod.host.real import real_host

    return real_host(store.chap, store, inherit=locks, open_stream=open_stream)


def read_boot_id() -> str:
    """Return the kernel's id of this boot; a unit without /proc/sys gets it in its environment."""
    passed = os.environ.get("ZFSILO_BOOT_ID")
    if passed:
        return passed.replace("-", "")
    return read_text("/proc/sys/kernel/random/boot_id").strip().replace("-", "")


def main() -> int:
    """Run or roll back the operations of a unit; exit code 1 lets systemd start the rollback."""
    arguments = sys.argv[1:]
    state = STATE_DIRECTORY
    if arguments[:1] == ["--state"]:
        state, arguments = arguments[1], arguments[2:]
    command, *words = arguments or [""]
    if len(words) != WORDS.get(command):
        sys.stderr.write("usage: zfsilo-worker [--state DIR] run|rollback UNIT\n")
        return 2
    try:
        if command == "blocks":
            errors = _read_blocks(state, *words)
        elif command == "send":
            errors = _send(state, *words)
        else:
            errors = _attempt(state, words[0], command)
    except ZfsiloError as error:
        errors = [error.message]
    for line in errors:
        sys.stderr.write(f"{line}\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

"""`zfsiloctl operation`: what is on its way, what has ended, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from zfsilo.v1 import operation_pb2 as pb

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.change import outcome
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.filters import all_of, equals
from zfsilod.ctl.output.progress import ENDED, Progress, describe
from zfsilod.ctl.output.table import clean, say, show_block, show_table
from zfsilod.ctl.output.volume import age, when, word
from zfsilod.ctl.parse import bare, resource
from zfsilod.model.errors import DeadlineExceeded, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

STILL_RUNNING = "NOT (state = DONE OR state = ROLLED_BACK OR state = ABANDONED)"
# It ended, or nothing more happens to it soon.
SETTLED = (*ENDED, pb.OPERATION_STATE_NEEDS_REPAIR)


def list_operations(given: Namespace) -> None:
    """List operations, oldest first."""
    running = STILL_RUNNING if given.running else ""
    state = equals("state", given.state.upper()) if given.state else ""
    subject = equals("subject", resource(given.volume, "volumes")) if given.volume else ""
    wanted = all_of(given.filter, running, state, subject)
    with dial(given) as server:
        request = pb.ListOperationsRequest(filter=wanted)
        found = server.ask_all(server.api.operations.ListOperations, request, "operations")
    columns = ("NAME", "STATE", "DONE", "WHAT", "BY", "AGE")
    rpc_errors.show_all(
        given,
        "operations",
        found,
        name=id_of,
        table=lambda: show_table(columns, [_row(each) for each in found]),
    )


def _row(operation: Any) -> list[str]:
    done = "" if operation.state in SETTLED else f"{operation.progress} %"
    return [
        id_of(operation),
        state_of(operation),
        done,
        operation.title,
        operation.caller,
        age(operation.create_time),
    ]


def show(given: Namespace) -> None:
    """Show an operation with its moves."""
    with dial(given) as server:
        found = get(server, given.name)
    if given.json:
        print(rpc_errors.as_json(found))
        return
    show_block(
        f"operation {id_of(found)}",
        [
            ("What", found.title),
            ("State", state_of(found)),
            ("Made", f"{found.progress} %"),
            ("About", found.subject),
            ("Error", found.error.message),
            ("At step", found.error.step),
            ("By", found.caller),
            ("Begun", when(found.create_time)),
            ("Ended", when(found.end_time)),
        ],
    )
    for action in found.actions:
        print(
            f"  {word(pb.ActionStatus, action.status, 'ACTION_STATUS_'):<9}  {clean(action.step)}"
        )


def wait(given: Namespace) -> int:
    """Wait for the end of an operation; what made it fail is told, and is the exit code."""
    name = resource(given.name, "operations")
    with dial(given) as server:
        server.read_s = server.change_s
        progress = Progress(server, lambda: name, draw=not (given.json or given.quiet))
        progress.start()
        try:
            found = server.ask(
                server.api.operations.WaitOperation, pb.WaitOperationRequest(name=name)
            )
        finally:
            progress.stop()
    return conclude(given, found)


def conclude(given: Namespace, operation: Any) -> int:
    """Print how an operation ended. Raises its failure as an error."""
    if given.json:
        print(rpc_errors.as_json(operation))
    if operation.state not in SETTLED:
        raise DeadlineExceeded(
            f"operation {id_of(operation)} ({operation.title}) still runs",
            reason="STILL_RUNNING",
            operation=id_of(operation),
        )
    failure = rpc_errors.failure_of(operation)
    if failure is not None:
        raise failure
    if operation.state == pb.OPERATION_STATE_ROLLED_BACK:
        raise FailedPrecondition(f"{operation.title}: it was taken back", reason="ROLLED_BACK")
    say(given, outcome(operation))
    return 0


def watch(given: Namespace) -> int:
    """Print operations as they change: one until its end, or all without end."""
    with dial(given) as server:
        if not given.name:
            for each in changes_since(server, "", newest_revision(server), given.timeout):
                _print_change(given, each)
            return 0
        found = get(server, given.name)
        if found.state not in SETTLED:
            wanted = equals("id", id_of(found))
            changes = changes_since(server, wanted, found.revision - 1, given.timeout)
            for found in changes:
                _print_change(given, found)
                if found.state in SETTLED:
                    break
    return conclude(given, found)


def _print_change(given: Namespace, operation: Any) -> None:
    if given.json:
        print(rpc_errors.dumps(rpc_errors.plain(operation), indent=None), flush=True)
    else:
        print(f"{id_of(operation)}  {_news(operation)}", flush=True)


def _news(operation: Any) -> str:
    if operation.state in SETTLED:
        return f"{clean(operation.title)} · {state_of(operation)}"
    return describe(operation)


def changes_since(
    server: Server, wanted: str, after: int, timeout_s: float | None = None
) -> Iterator[Any]:
    """Yield operations as they change. A daemon that restarts is waited for, and nothing missed."""
    method, fruitless = server.api.operations.WatchOperations, 0
    while fruitless < 2:
        fruitless += 1
        request = pb.WatchOperationsRequest(filter=wanted, after_revision=after)
        try:
            for found in method(request, timeout=timeout_s, wait_for_ready=fruitless > 1):
                fruitless, after = 0, found.operation.revision
                yield found.operation
        except grpc.RpcError as error:
            refused = rpc_errors.error_of(error, server)
            if refused.code != "UNAVAILABLE" or fruitless > 1:
                raise refused from error
    raise Unavailable(f"{server.where} ends the watch again and again")


def newest_revision(server: Server) -> int:
    """Return the revision of the newest change so far."""
    request = pb.ListOperationsRequest()
    found = server.ask_all(server.api.operations.ListOperations, request, "operations")
    return max((each.revision for each in found), default=0)


def cancel(given: Namespace) -> None:
    """Stop an operation; its rollback follows."""
    request = pb.CancelOperationRequest(name=resource(given.name, "operations"))
    with dial(given) as server:
        found = server.ask(server.api.operations.CancelOperation, request)
    _asked(given, found, "stopped; what it did is being taken back")


def repair(given: Namespace) -> None:
    """Try the rollback of an operation again."""
    request = pb.RepairOperationRequest(name=resource(given.name, "operations"))
    with dial(given) as server:
        found = server.ask(server.api.operations.RepairOperation, request)
    _asked(given, found, "tried again")


def abandon(given: Namespace) -> None:
    """Let go of an operation that cannot be taken back, and tell what it leaves behind."""
    request = pb.AbandonOperationRequest(name=resource(given.name, "operations"))
    with dial(given) as server:
        found = server.ask(server.api.operations.AbandonOperation, request)
    if given.json:
        print(rpc_errors.as_json(found))
    elif not given.quiet:
        print(f"{clean(found.title)}: abandoned")
        behind = [
            each
            for each in found.actions
            if each.status in (pb.ACTION_STATUS_STARTED, pb.ACTION_STATUS_DONE)
        ]
        for each in behind:
            print(f"  not reverted: {clean(each.step)}")
        if behind:
            print(f"  see: {where_to_look(found)}")


def where_to_look(operation: Any) -> str:
    """Return the commands that show what an abandoned operation has left."""
    volume = operation.subject.removeprefix("volumes/")
    sync = f"zfsiloctl volume sync {clean(volume)} --dry-run, "
    return f"{sync if volume != operation.subject else ''}zfsiloctl orphan list"


def _asked(given: Namespace, operation: Any, what: str) -> None:
    """Say what was asked for; one that had ended already stays as it is."""
    if given.json:
        print(rpc_errors.as_json(operation))
    elif not given.quiet:
        ended = operation.state in ENDED
        said = f"{state_of(operation)} already" if ended else what
        print(f"{clean(operation.title)}: {said}")
        if not ended:
            print(f"  see: zfsiloctl operation watch {id_of(operation)}")


def get(server: Server, name: str) -> Any:
    """Return an operation as it is now."""
    request = pb.GetOperationRequest(name=resource(name, "operations"))
    return server.ask(server.api.operations.GetOperation, request)


def id_of(operation: Any) -> str:
    """Return an operation's ULID."""
    return bare(operation.name, "operations")


def state_of(operation: Any) -> str:
    """Return an operation's state as words."""
    return word(pb.OperationState, operation.state, "OPERATION_STATE_").replace("_", " ")

"""`zfsiloctl operation`: list, show, wait for, watch, cancel, repair and abandon operations."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl import rpc_errors
from zfsilod.ctl.change import outcome
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.filters import all_of, equals
from zfsilod.ctl.output.messages import as_json, dumps, plain, show_all
from zfsilod.ctl.output.operation import (
    SETTLED,
    change_line,
    id_of,
    show_list,
    show_operation,
    state_of,
)
from zfsilod.ctl.output.progress import ENDED, progress_of
from zfsilod.ctl.output.table import clean, say
from zfsilod.ctl.parse import bare, resource
from zfsilod.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    ZfsiloError,
    some_of,
)
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.ulid import LENGTH as ULID_LENGTH

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator
    from typing import Any

STILL_RUNNING = "NOT (state = DONE OR state = ROLLED_BACK OR state = ABANDONED)"
MAX_NAMED = 4


def list_operations(args: Namespace) -> None:
    """List operations, oldest first."""
    running = STILL_RUNNING if args.running else ""
    state = equals("state", args.state.upper()) if args.state else ""
    subject = equals("subject", resource(args.volume, "volumes")) if args.volume else ""
    wanted = all_of(args.filter, running, state, subject)
    with dial(args) as server:
        request = pb.ListOperationsRequest(filter=wanted)
        operations = server.ask_all("ListOperations", request, "operations")
    show_all(
        args,
        "operations",
        operations,
        name=id_of,
        table=lambda: show_list(operations),
    )


def show(args: Namespace) -> None:
    """Show an operation and its actions."""
    with dial(args) as server:
        operation = get(server, args.name)
    if args.json:
        print(as_json(operation))
        return
    show_operation(operation)


def wait(args: Namespace) -> int:
    """Wait until an operation finishes; raise its error if it failed."""
    with dial(args) as server:
        name = find(server, args.name)
        server.read_s = server.change_s
        progress = progress_of(server, draw=not (args.json or args.quiet))
        progress.follow(name)
        try:
            operation = server.ask("WaitOperation", pb.WaitOperationRequest(name=name))
        finally:
            progress.stop()
    return conclude(args, operation)


def conclude(args: Namespace, operation: Any) -> int:
    """Print the outcome of an operation. Raises its error if it failed."""
    if args.json:
        print(as_json(operation))
    if operation.state not in SETTLED:
        raise DeadlineExceeded(
            f"operation {id_of(operation)} ({operation.title}) is still running",
            reason="STILL_RUNNING",
            operation=id_of(operation),
        )
    failure = rpc_errors.failure_of(operation)
    if failure is not None:
        raise failure
    if operation.state == pb.OPERATION_STATE_ROLLED_BACK:
        raise FailedPrecondition(f"{operation.title}: rolled back", reason="ROLLED_BACK")
    say(args, outcome(operation))
    return 0


def watch(args: Namespace) -> int:
    """Print operations as they change: one until it finishes, or all until interrupted."""
    with dial(args) as server:
        if not args.name:
            for operation in changes_since(server, "", newest_revision(server), args.timeout):
                _print_change(args, operation)
            return 0
        operation = get(server, args.name)
        if operation.state not in SETTLED:
            wanted = equals("id", id_of(operation))
            changes = changes_since(server, wanted, operation.revision - 1, args.timeout)
            for operation in changes:
                _print_change(args, operation)
                if operation.state in SETTLED:
                    break
    return conclude(args, operation)


def _print_change(args: Namespace, operation: Any) -> None:
    if args.json:
        print(dumps(plain(operation), indent=None), flush=True)
    else:
        print(change_line(operation), flush=True)


def changes_since(
    server: Server, wanted: str, after: int, timeout_s: float | None = None
) -> Iterator[Any]:
    """Yield operations as they change; continue after a restart of the daemon, without gaps."""
    fruitless = 0
    while fruitless < 2:
        fruitless += 1
        request = pb.WatchOperationsRequest(filter=wanted, after_revision=after)
        try:
            call = server.watch("WatchOperations", request, timeout_s, patient=fruitless > 1)
            for change in call.responses():
                fruitless, after = 0, change.operation.revision
                yield change.operation
        except ZfsiloError as error:
            if error.code != "UNAVAILABLE" or fruitless > 1:
                raise
    raise Unavailable(f"{server.where} closed the watch twice before any change; retry")


def newest_revision(server: Server) -> int:
    """Return the revision of the newest change."""
    request = pb.ListOperationsRequest()
    operations = server.ask_all("ListOperations", request, "operations")
    return max((operation.revision for operation in operations), default=0)


def cancel(args: Namespace) -> None:
    """Stop an operation and start its rollback."""
    with dial(args) as server:
        request = pb.CancelOperationRequest(name=find(server, args.name))
        operation = server.ask("CancelOperation", request)
    _report(args, operation, "stopped; rolling back")


def repair(args: Namespace) -> None:
    """Retry the rollback of an operation."""
    with dial(args) as server:
        request = pb.RepairOperationRequest(name=find(server, args.name))
        operation = server.ask("RepairOperation", request)
    _report(args, operation, "retrying the rollback")


def abandon(args: Namespace) -> None:
    """Release the claims of an operation that cannot be rolled back, and list what it leaves."""
    with dial(args) as server:
        request = pb.AbandonOperationRequest(name=find(server, args.name))
        operation = server.ask("AbandonOperation", request)
    if args.json:
        print(as_json(operation))
    elif not args.quiet:
        print(f"{clean(operation.title)}: abandoned")
        remaining = [
            action
            for action in operation.actions
            if action.status in (pb.ACTION_STATUS_STARTED, pb.ACTION_STATUS_DONE)
        ]
        for action in remaining:
            print(f"  not reverted: {clean(action.step)}")
        if remaining:
            print(f"  see: {where_to_look(operation)}")


def where_to_look(operation: Any) -> str:
    """Return the commands that show what an abandoned operation leaves on the host."""
    volume = operation.subject.removeprefix("volumes/")
    sync = f"zfsiloctl volume sync {clean(volume)} --dry-run, "
    return f"{sync if volume != operation.subject else ''}zfsiloctl orphan list"


def _report(args: Namespace, operation: Any, progress: str) -> None:
    """Print what happens to an operation; one that has finished is not changed."""
    if args.json:
        print(as_json(operation))
    elif not args.quiet:
        finished = operation.state in ENDED
        news = f"already {state_of(operation)}" if finished else progress
        print(f"{clean(operation.title)}: {news}")
        if not finished:
            print(f"  see: zfsiloctl operation watch {id_of(operation)}")


def get(server: Server, name: str) -> Any:
    """Return an operation."""
    request = pb.GetOperationRequest(name=find(server, name))
    return server.ask("GetOperation", request)


def find(server: Server, text: str) -> str:
    """Return the name of an operation from its id, or from the unique start or end of its id."""
    part = bare(text, "operations").lower()
    if not part or len(part) >= ULID_LENGTH:
        return resource(text, "operations")
    request = pb.ListOperationsRequest()
    operations = server.ask_all("ListOperations", request, "operations")
    matches = [
        name for name in map(id_of, operations) if name.startswith(part) or name.endswith(part)
    ]
    if not matches:
        raise NotFound(f"there is no operation whose id starts or ends with {part}")
    if len(matches) > 1:
        raise InvalidArgument(
            f"{len(matches)} operations have an id that starts or ends with {part}: "
            f"{some_of(matches, MAX_NAMED)}",
            reason="USAGE",
            usage="zfsiloctl operation list -q",
        )
    return resource(matches[0], "operations")

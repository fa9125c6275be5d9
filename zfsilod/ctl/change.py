"""Sending a change: its plan, its progress on a terminal, what came of it, and Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.output.progress import Progress
from zfsilod.ctl.output.table import clean, say
from zfsilod.ctl.parse import bare

if TYPE_CHECKING:
    from argparse import Namespace

    from google.protobuf.message import Message

    from zfsilod.ctl.client import Server

OPERATION_METADATA = "zfsilo-operation"


def change(given: Namespace, server: Server, method: Any, request: Any) -> None:
    """Ask for a change (by a method of `server.changes`) as the arguments say, and report."""
    answer = ask(given, server, method, request)
    if given.json:
        print(rpc_errors.dumps(answer))


def ask(given: Namespace, server: Server, method: Any, request: Any) -> dict[str, Any]:
    """Ask for a change as the arguments say, and tell people; --json is left to the caller."""
    if given.dry_run:
        request.validate_only = True
        answer = send(server, method, request, follow=False)
        return _told(given, answer, plan_of(answer.operation))
    if given.no_wait:
        return _begin(given, server, method, request)
    answer = send(server, method, request, follow=not (given.json or given.quiet))
    return _told(given, answer, outcome(answer.operation))


def send(server: Server, method: Any, request: Message, *, follow: bool = True) -> Any:
    """Ask for a change and return the answer at its end. Raises ZfsiloError.

    Ctrl-C leaves the operation alone, and names it in the KeyboardInterrupt.
    """
    call = method(request, timeout=server.change_s)
    progress = Progress(server, lambda: operation_of(call), draw=follow)
    progress.start()
    try:
        return answer_of(server, call)
    except KeyboardInterrupt:
        call.cancel()
        raise KeyboardInterrupt(bare(progress.operation, "operations")) from None
    finally:
        progress.stop()


def answer_of(server: Server, call: Any) -> Any:
    """Wait for the one answer of a call. Raises ZfsiloError."""
    try:
        (answer,) = call
    except grpc.RpcError as error:
        raise rpc_errors.error_of(error, server) from error
    return answer


def operation_of(call: Any) -> str:
    """Wait until the daemon stored the operation, and return its name; "" when there is none."""
    found = dict(call.initial_metadata() or ()).get(OPERATION_METADATA, "")
    return str(found)


def _told(given: Namespace, answer: Message, text: str) -> dict[str, Any]:
    """Tell people, or return the answer for programs."""
    if given.json:
        return rpc_errors.plain(answer)
    if given.dry_run or not given.quiet:
        print(text)
    return {}


def outcome(operation: Any) -> str:
    """Return a line that says what an operation did."""
    title = clean(operation.title)
    return title if title.endswith("already so") else f"{title}: done"


def plan_of(operation: Any) -> str:
    """Return what an operation would do, a line for each action."""
    if not operation.actions:
        return f"would {clean(operation.title)}, with no change to the host"
    actions = [f"  {clean(action.step)}" for action in operation.actions]
    return "\n".join([f"would {clean(operation.title)}:", *actions])


def _begin(given: Namespace, server: Server, method: Any, request: Message) -> dict[str, Any]:
    """Ask for a change and return when it is stored; tell its operation."""
    call = method(request, timeout=server.change_s)
    name = operation_of(call)
    if not name:  # it was refused
        answer = answer_of(server, call)
        return _told(given, answer, outcome(answer.operation))
    call.cancel()
    say(given, bare(name, "operations"))
    return {"operation": {"name": name}}

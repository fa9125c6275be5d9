"""Sending a change: its plan, its progress on a terminal, what came of it, and Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from zfsilod.ctl import answers
from zfsilod.ctl.amount import bare
from zfsilod.ctl.interrupt import heard
from zfsilod.ctl.progress import Progress
from zfsilod.ctl.table import clean

if TYPE_CHECKING:
    from argparse import Namespace

    from google.protobuf.message import Message

    from zfsilod.ctl.client import Server

OPERATION_METADATA = "zfsilo-operation"


def change(given: Namespace, server: Server, method: Any, request: Any) -> None:
    """Ask for a change (by a method of `server.changes`) as the arguments say, and report."""
    if given.dry_run:
        request.validate_only = True
        answer = send(server, method, request, follow=False)
        report(given, answer, lambda: show_plan(answer.operation))
    elif given.no_wait:
        _begin(given, server, method, request)
    else:
        answer = send(server, method, request, follow=not (given.json or given.quiet))
        report(given, answer, lambda: print(outcome(answer.operation)))


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
        heard()
        call.cancel()
        raise KeyboardInterrupt(bare(progress.operation, "operations")) from None
    finally:
        progress.stop()


def answer_of(server: Server, call: Any) -> Any:
    """Wait for the one answer of a call. Raises ZfsiloError."""
    try:
        (answer,) = call
    except grpc.RpcError as error:
        raise answers.error_of(error, server) from error
    return answer


def operation_of(call: Any) -> str:
    """Wait until the daemon stored the operation, and return its name; "" when there is none."""
    found = dict(call.initial_metadata() or ()).get(OPERATION_METADATA, "")
    return str(found)


def report(given: Namespace, answer: Message, for_people: Any) -> None:
    """Print the answer to a change as the arguments want it."""
    if given.json:
        print(answers.as_json(answer))
    elif given.dry_run or not given.quiet:
        for_people()


def outcome(operation: Any) -> str:
    """Return a line that says what an operation did."""
    title = clean(operation.title)
    return title if title.endswith("already so") else f"{title}: done"


def show_plan(operation: Any) -> None:
    """Print what an operation would do, move by move."""
    if not operation.moves:
        print(f"would {clean(operation.title)}, with no change to the host")
        return
    print(f"would {clean(operation.title)}:")
    for move in operation.moves:
        print(f"  {direction(move)} {clean(move.step)}")


def direction(move: Any) -> str:
    """Return the word for a move's direction, always of the same width."""
    return "do  " if move.up else "undo"


def _begin(given: Namespace, server: Server, method: Any, request: Message) -> None:
    """Ask for a change and return when it is stored; print the operation."""
    call = method(request, timeout=server.change_s)
    name = operation_of(call)
    if not name:  # it was refused
        answer = answer_of(server, call)
        report(given, answer, lambda: print(outcome(answer.operation)))
        return
    call.cancel()
    if given.json:
        print(answers.dumps({"operation": {"name": name}}))
    elif not given.quiet:
        print(bare(name, "operations"))

"""Submits changes: prints the plan of a dry run, progress on a terminal, and the outcome."""

from __future__ import annotations

from zfsilod.ctl.output.messages import as_json, dumps, plain
from zfsilod.ctl.output.progress import progress_of
from zfsilod.ctl.output.table import clean, say
from zfsilod.ctl.parse import bare
from zfsilod.model.errors import AlreadyExists
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from typing import Any

    from zfsilod.ctl.client import Server
    from zfsilod.ctl.messages import Message


def change(
    args: Namespace,
    server: Server,
    method: str,
    request: Any,
    note: Callable[[Any], str] | None = None,
) -> None:
    """Submit a change, and print its outcome, with what `note` says of the answer."""
    answer = ask(args, server, method, request, note)
    if args.json:
        print(dumps(answer))


def create(
    args: Namespace,
    server: Server,
    created: tuple[str, Any],
    updated: tuple[str, Any],
    note: Callable[[Any], str],
) -> None:
    """Submit a creation; with --update change an existing resource to the same values."""
    try:
        change(args, server, *created, note)
    except AlreadyExists:
        if not args.update:
            raise
        change(args, server, *updated, note)


def ask(
    args: Namespace,
    server: Server,
    method: str,
    request: Any,
    note: Callable[[Any], str] | None = None,
) -> dict[str, Any]:
    """Submit a change and print its outcome; with --json return the answer instead."""
    if args.dry_run:
        request.validate_only = True
        answer = send(server, method, request, follow=False)
        return _reported(args, answer, plan_of(answer.operation))
    if args.no_wait:
        call = server.start(method, request)
        if name := call.learn():
            call.cancel()
            say(args, bare(name, "operations"))
            return {"operation": {"name": name}}
        answer = call.answer()
        return _reported(args, answer, outcome(answer.operation))
    answer = send(server, method, request, follow=not (args.json or args.quiet))
    noted = note(answer) if note is not None else ""
    text = outcome(answer.operation)
    return _reported(args, answer, f"{text}\n{noted}" if noted else text)


def send(server: Server, method: str, request: Message, *, follow: bool = True) -> Any:
    """Submit a change and return the answer when it has finished. Raises ZfsiloError.

    Ctrl-C does not cancel the operation; the KeyboardInterrupt names it.
    """
    call = server.start(method, request)
    progress = progress_of(server, draw=follow)
    call.started = progress.follow
    try:
        return call.answer()
    except KeyboardInterrupt:
        call.cancel()
        raise KeyboardInterrupt(bare(call.operation, "operations")) from None
    finally:
        progress.stop()


def _reported(args: Namespace, answer: Message, text: str) -> dict[str, Any]:
    """Print the text, or with --json return the answer."""
    if args.json:
        return plain(answer)
    if args.dry_run or not args.quiet:
        print(text)
    return {}


def outcome(operation: Any) -> str:
    """Return the line for an operation that has finished."""
    title = clean(operation.title)
    return title if title.endswith("already so") else f"{title}: done"


def plan_of(operation: Any) -> str:
    """Return the plan of an operation, one line for each action."""
    if not operation.actions:
        return f"would {clean(operation.title)}, with no change to the host"
    actions = [f"  {clean(action.step)}" for action in operation.actions]
    return "\n".join([f"would {clean(operation.title)}:", *actions])


def show_run(args: Namespace, answer: Any, name: str) -> None:
    """Print the operations of the run of a policy, or their plans."""
    if args.json:
        print(as_json(answer))
        return
    show_line = plan_of if args.dry_run else outcome
    for operation in answer.operations:
        say(args, show_line(operation))
    if not answer.operations:
        say(args, selects_none(name))


def selects_none(name: str) -> str:
    """Return the sentence on a policy that selects no volume."""
    return f"{clean(name)} selects no volume"


def set_fields(request: Any, target: Any, values: dict[str, Any]) -> None:
    """Set the values that are not None in the resource of an update, and name them in its mask."""
    for field, value in values.items():
        if value is not None:
            setattr(target, field, value)
            request.update_mask.append(field)

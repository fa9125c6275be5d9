"""What a daemon answers: its errors as ours, and its messages as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import BY_NAME, Internal, ZfsiloError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    import grpc
    from google.protobuf.message import Message

    from zfsilod.ctl.client import Server


def error_of(error: grpc.RpcError, server: Server) -> ZfsiloError:
    """Return what went wrong with a call as an error of ours."""
    from zfsilod.wire.status import from_status, is_ours

    found = from_status(error)
    if is_ours(error):
        return found
    answer: Any = error  # grpc's types do not say that it is a Call
    code = answer.code().name
    reason = "NO_DAEMON" if code == "UNAVAILABLE" and server.local else code
    return type(found)(_in_our_words(code, found.message, server.where), reason=reason)


def _in_our_words(code: str, details: str, where: str) -> str:
    """Return a sentence for an error that no zfsilod sent: the connection's."""
    if code == "UNAVAILABLE":
        return f"{where} does not answer: {details}"
    if code == "DEADLINE_EXCEEDED":
        return f"{where} did not answer in time"
    if code == "UNIMPLEMENTED":
        return f"{where} is older than this zfsiloctl and cannot do that"
    return f"{where}: {details}"


def failure_of(operation: Any) -> ZfsiloError | None:
    """Return why an ended operation failed, as an error of ours; None when it did not."""
    if not operation.HasField("error"):
        return None
    told = operation.error
    facts = {name: told.facts[name] for name in told.facts}
    return BY_NAME.get(told.name, Internal)(told.message, reason=told.reason, **facts)


def as_json(message: Message) -> str:
    """Return a message as protobuf's JSON, with our own names of fields, nothing left out."""
    return dumps(plain(message))


def show_all(
    given: Namespace,
    field: str,
    found: Sequence[Any],
    *,
    name: Callable[[Any], str],
    table: Callable[[], None],
) -> None:
    """Print a list as the arguments want it: as one JSON object, the names alone, or a table."""
    if given.json:
        print(dumps({field: [plain(each) for each in found]}))
    elif given.quiet:
        sys.stdout.writelines(f"{name(each)}\n" for each in found)
    else:
        table()


def plain(message: Message) -> dict[str, Any]:
    """Return a message as json takes it: 64-bit numbers are texts, as protobuf has it."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def dumps(value: object, *, indent: int | None = 2) -> str:
    """Return JSON whose order never changes."""
    import json

    return json.dumps(value, indent=indent, ensure_ascii=False, sort_keys=True)

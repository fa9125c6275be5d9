"""Operations as a table, as a page, and as lines of a watch."""

from __future__ import annotations

import time

from zfsilod.ctl import messages as pb
from zfsilod.ctl.output.progress import ENDED, describe
from zfsilod.ctl.output.table import BAD, BOLD, GOOD, clean, paint, show_block, show_table
from zfsilod.ctl.output.volume import short_caller, word
from zfsilod.ctl.parse import bare
from zfsilod.ctl.times import age, rfc3339, show_age, when
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.sizes import show_round

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# Finished, or waiting for a repair.
SETTLED = (*ENDED, pb.OPERATION_STATE_NEEDS_REPAIR)
LIST = ("AGE", "TITLE", "STATE", "DONE", "BY", "TOOK", "ID")
SHORT_ID = 8  # the last characters of a ULID: the first ones are those of its time


def show_list(operations: Sequence[Any]) -> None:
    """Print operations as a table."""
    show_table(LIST, [_row(operation) for operation in operations])


def show_operation(operation: Any) -> None:
    """Print an operation and its actions."""
    is_settled = operation.state in SETTLED
    duration = f" in {took(operation)}" if took(operation) not in ("", "0s") else ""
    state = f"{state_of(operation)}{duration}" if is_settled else f"{operation.progress} %"
    colour = GOOD if operation.state == pb.OPERATION_STATE_DONE else BAD if is_settled else ""
    title = clean(operation.title)
    print(f"{paint(BOLD, f'operation {id_of(operation)}')}: {title} · {paint(colour, state)}")
    show_block(
        "",
        [
            ("Error", operation.error.message),
            ("Stream", transfer(operation)),
            ("Failed action", operation.error.step),
            ("By", operation.caller),
            ("Submitted", when(operation.create_time)),
        ],
    )
    for action in operation.actions:
        print(f"  {word(action.status, 'ACTION_STATUS_'):<9}  {clean(action.step)}")


def transfer(operation: Any) -> str:
    """Return how far the stream of an operation is; "": it sends none."""
    if not operation.HasField("transfer"):
        return ""
    sent = operation.transfer
    of = f" of about {show_round(sent.total_bytes)}" if sent.total_bytes else ""
    return f"{show_round(sent.sent_bytes)}{of} sent, {show_round(sent.bytes_per_second)}/s"


def change_line(operation: Any) -> str:
    """Return the line of a watch for a change of an operation, with the time now."""
    settled = f"{clean(operation.title)} · {state_of(operation)}"
    line = settled if operation.state in SETTLED else describe(operation)
    moment = rfc3339(int(time.time()))
    return f"{moment}  {short_id(operation)}  {line} · by {short_caller(operation.caller)}"


def id_of(operation: Any) -> str:
    """Return the id of an operation, a ULID."""
    return bare(operation.name, "operations")


def short_id(operation: Any) -> str:
    """Return the end of the id of an operation, which all commands accept if it is unique."""
    return id_of(operation)[-SHORT_ID:]


def state_of(operation: Any) -> str:
    """Return the state of an operation in lower case."""
    return word(operation.state, "OPERATION_STATE_").replace("_", " ")


def took(operation: Any) -> str:
    """Return how long an operation took, "" while it runs."""
    if not operation.end_time.seconds:
        return ""
    return show_age(operation.end_time.seconds - operation.create_time.seconds)


def _row(operation: Any) -> list[str]:
    return [
        age(operation.create_time),
        operation.title,
        state_of(operation),
        "" if operation.state in SETTLED else f"{operation.progress} %",
        short_caller(operation.caller),
        took(operation),
        short_id(operation),
    ]

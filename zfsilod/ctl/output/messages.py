"""Messages as JSON, and lists of them as JSON, names or a table."""

from __future__ import annotations

import json
import sys

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from typing import Any

    from zfsilod.ctl.messages import Message


def plain(message: Message) -> dict[str, Any]:
    """Return a message as the server sent it: with every field, 64-bit numbers as texts."""
    return message.plain()


def dumps(value: object, *, indent: int | None = 2) -> str:
    """Return JSON in a stable order."""
    return json.dumps(value, indent=indent, ensure_ascii=False, sort_keys=True)


def as_json(message: Message) -> str:
    """Return a message as JSON."""
    return dumps(plain(message))


def show_all(
    args: Namespace,
    field: str,
    messages: Sequence[Any],
    *,
    name: Callable[[Any], str],
    table: Callable[[], None],
) -> None:
    """Print a list as the arguments ask: a JSON object, the names, or a table."""
    if args.json:
        print(dumps({field: [plain(message) for message in messages]}))
    elif args.quiet:
        sys.stdout.writelines(f"{name(message)}\n" for message in messages)
    elif messages:
        table()
    else:
        print(f"no {field.replace('_', ' ')}")

"""Filters of the List methods, put together from arguments."""

from __future__ import annotations

from zfsilod.ctl.parse import assignments


def equals(field: str, value: str) -> str:
    """Return the comparison of a field with a value, which may have any characters."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{field} = "{quoted}"'


def labels_are(texts: list[str]) -> list[str]:
    """Return the comparisons for NAME=VALUE arguments."""
    return [equals(f"labels.{name}", v) for name, v in assignments(texts, "label").items()]


def all_of(own: str | None, *others: str) -> str:
    """Return a filter for what the user's own filter and all the others let through."""
    parts = [each for each in others if each]
    if own and parts:
        own = f"({own})"
    return " AND ".join([own, *parts] if own else parts)

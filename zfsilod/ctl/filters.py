"""Filters of the List methods, composed from arguments."""

from __future__ import annotations

from zfsilod.ctl.parse import assignments


def equals(field: str, value: str) -> str:
    """Return the comparison of a field with a value, which may hold any characters."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{field} = "{quoted}"'


def label_filters(texts: list[str]) -> list[str]:
    """Return the comparisons for NAME=VALUE arguments."""
    labels = assignments(texts, "label")
    return [equals(f"labels.{name}", value) for name, value in labels.items()]


def all_of(own: str | None, *others: str) -> str:
    """Return the conjunction of the user's own filter and others; empty ones are skipped."""
    parts = [part for part in others if part]
    if own and parts:
        own = f"({own})"
    return " AND ".join([own, *parts] if own else parts)

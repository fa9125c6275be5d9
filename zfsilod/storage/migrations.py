"""Migrations of the store, from each schema to the next.

They work on records as JSON has them, since the classes of an old schema are gone. A field or a
value is renamed by a line in a table here; a class is renamed without one, as its tag stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zfsilod.storage.store import Transaction

    Fields = Mapping[str, Mapping[str, str]]
    Values = Mapping[tuple[str, str], Mapping[str, str]]

RENAMED_FIELDS: Fields = {
    "Acl": {"admitted": "allowed"},
    "Attachment": {"height": "state"},
    "Clone": {"shot": "snapshot_ref", "cut": "snapshot_uid"},
    "Cut": {"shots": "refs"},
    "Move": {"mark": "status"},
    "Operation": {"moves": "actions", "request": "fingerprint"},
    "Publication": {"request": "client_operation"},
    "Volume": {"height": "state"},
}
"""Tags of schema 2, and the new names of their fields by the old ones."""

RENAMED_VALUES: Values = {
    ("Volume", "height"): {"EXPORTED": "PUBLISHED"},
    ("Move", "mark"): {
        "todo": "PENDING",
        "kept": "UNCHANGED",
        "begun": "STARTED",
        "done": "DONE",
        "undone": "REVERTED",
    },
}
"""Tags and fields of schema 2, and the new values by the old ones."""


def renamed(value: Any, fields: Fields, values: Values) -> Any:
    """Return what JSON has of a record with new names of fields and values, at any depth."""
    if isinstance(value, list):
        return [renamed(item, fields, values) for item in value]
    if not isinstance(value, dict):
        return value
    tag = value["is"]
    names = fields.get(tag, {})
    return {
        names.get(name, name): _replaced(renamed(item, fields, values), values.get((tag, name), {}))
        for name, item in value.items()
    }


def _replaced(value: Any, replacements: Mapping[str, str]) -> Any:
    """Return a text by its new name, or a list with the new names of its texts."""
    if not replacements:
        return value
    if isinstance(value, list):
        return [_replaced(item, replacements) for item in value]
    return replacements.get(value, value) if isinstance(value, str) else value


def _count_promises(txn: Transaction) -> None:
    """Schema 2 counts what thin volumes promise, so that a creation need not read them all."""
    promised = sum(
        volume["capacity_bytes"] for volume in txn.scan_bucket("volume") if volume["thin"]
    )
    txn.put_raw("meta", "promised", str(promised).encode())


def _rename(txn: Transaction) -> None:
    """Schema 3 has new names of fields and values."""
    txn.rewrite(lambda record: renamed(record, RENAMED_FIELDS, RENAMED_VALUES))


MIGRATIONS: dict[int, Callable[[Transaction], None]] = {1: _count_promises, 2: _rename}
"""What brings a store from a schema to the next."""

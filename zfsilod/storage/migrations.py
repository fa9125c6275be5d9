"""Migrations of the store, from each schema to the next.

They work on records as JSON, since an old schema has no classes any more. A field or a value is
renamed by a line in a table of this file; a class is renamed without one, as its tag is permanent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zfsilod.storage.transaction import Transaction

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
    """Return the JSON of a record with the new names of fields and values, at any depth."""
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
    """Return the new name of a text, or a list with the new names of its texts."""
    if not replacements:
        return value
    if isinstance(value, list):
        return [_replaced(item, replacements) for item in value]
    return replacements.get(value, value) if isinstance(value, str) else value


def _to_schema_2(txn: Transaction) -> None:
    """Store the sum of the sizes of thin volumes, so that a creation does not read all volumes."""
    promised = sum(
        volume["capacity_bytes"] for volume in txn.scan_bucket("volume") if volume["thin"]
    )
    txn.put_raw("meta", "promised", str(promised).encode())


def _to_schema_3(txn: Transaction) -> None:
    """Rename fields and values."""
    txn.rewrite(lambda record: renamed(record, RENAMED_FIELDS, RENAMED_VALUES))


MIGRATIONS: dict[int, Callable[[Transaction], None]] = {1: _to_schema_2, 2: _to_schema_3}
"""The migration from each schema to the next."""

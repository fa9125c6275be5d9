"""Golden stores: one of every schema and state, made by the first version with that schema.

A file is JSON lines. The first has the key of the store and the facts of its simulated host; if
there was only one operation, also the facts before it and those after its completion. Each other
line is a key of LMDB and its value: a record, a text, or bytes in base64.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DIRECTORY = Path(__file__).parent
PATHS = sorted(DIRECTORY.glob("schema-*/*.jsonl"))
SIZE_BYTES = 4 << 20
COMPACT = (",", ":")  # as the store writes records

Facts = dict[str, Any]


class Golden(NamedTuple):
    """The content of a golden store."""

    key: bytes
    facts: Facts
    before: Facts | None
    done: Facts | None
    pairs: tuple[tuple[str, bytes], ...]

    @property
    def schema(self) -> int:
        """The schema that it was written with."""
        return int(dict(self.pairs)["meta/schema"])

    def restore(self, directory: Path) -> None:
        """Write the store and its key into a new directory, byte by byte."""
        (directory / "store").mkdir(mode=0o700)
        (directory / "key").write_bytes(self.key)
        (directory / "facts.json").write_text(json.dumps(self.facts))
        environment = lmdb.open(str(directory / "store"), map_size=SIZE_BYTES, sync=False)
        with environment.begin(write=True) as txn:
            for key, value in self.pairs:
                txn.put(key.encode(), value)
        environment.close()


def load(path: Path) -> Golden:
    """Read a file."""
    head, *lines = (json.loads(line) for line in path.read_text().splitlines())
    return Golden(
        key=base64.b64decode(head["key"]),
        facts=head["facts"],
        before=head.get("before"),
        done=head.get("done"),
        pairs=tuple((key, _bytes_of(value)) for key, value in lines),
    )


def save(path: Path, golden: Golden) -> None:
    """Write a file."""
    head = golden._asdict() | {"key": base64.b64encode(golden.key).decode()}
    del head["pairs"]
    lines = [{name: value for name, value in head.items() if value is not None}]
    path.write_text(_text(lines) + _text([key, _plain_of(raw)] for key, raw in golden.pairs))


def plain_records(path: Path) -> list[dict[str, Any]]:
    """Return the stored records of a file as JSON values."""
    values = (json.loads(line) for line in path.read_text().splitlines()[1:])
    return [value for _key, value in values if isinstance(value, dict) and "is" in value]


def records_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every stored record in a JSON value, nested ones too."""
    if isinstance(value, dict):
        if "is" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from records_in(item)


def _text(lines: Iterable[Any]) -> str:
    return "".join(f"{json.dumps(line, separators=COMPACT)}\n" for line in lines)


def _plain_of(raw: bytes) -> Any:
    """Return a value in a readable form that reads back the same."""
    if raw.startswith(b"{"):
        record = json.loads(raw)
        assert _bytes_of(record) == raw
        return record
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if set(value) == {"base64"}:
        return base64.b64decode(value["base64"])
    return json.dumps(value, separators=COMPACT).encode()

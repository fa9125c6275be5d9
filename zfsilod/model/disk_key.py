"""The raw key of an encrypted volume, as a value that cannot be printed."""

from __future__ import annotations

import os

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

BYTES = 32  # of a key with keyformat=raw: zfsprops(7)
CURRENT = -1
"""The rotation that the record of a key has, in place of a number."""


class DiskKey:
    """The wrapping key of one encryption root: 256 random bits."""

    __slots__ = ("_raw",)

    def __init__(self, disk_key: str) -> None:
        """`disk_key`: 64 hex digits."""
        self._raw = bytes.fromhex(disk_key)

    @classmethod
    def make(cls) -> DiskKey:
        """Return a new key."""
        return cls(os.urandom(BYTES).hex())

    def reveal(self) -> bytes:
        """Return the 32 bytes, for the standard input of zfs only."""
        return self._raw

    def values(self) -> dict[str, str]:
        """Return the key as it is sealed. Never log the result."""
        return {"disk_key": self._raw.hex()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiskKey) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return "DiskKey(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")

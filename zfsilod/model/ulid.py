"""ULIDs: 128 bits in 26 characters that sort by creation time (github.com/ulid/spec)."""

from __future__ import annotations

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, in lower case
LENGTH, TIME_LENGTH = 26, 10
ULID = "[0-9a-hjkmnp-tv-z]{26}"  # as a pattern


def new_ulid() -> str:
    """Return a new ULID: 48 bits of milliseconds since 1970, 80 random bits."""
    return _encoded(time.time_ns() // 1_000_000, secrets.randbits(80))


def first_ulid(moment_s: int) -> str:
    """Return the lowest ULID of a moment, in seconds since 1970; after 10889 that of the end."""
    return _encoded(min(moment_s * 1000, (1 << 48) - 1), 0)


def moment_of(ulid: str) -> int:
    """Return when a ULID was made, in milliseconds since 1970. Raises ValueError for other text."""
    if len(ulid) != LENGTH:
        raise ValueError(f"{ulid[:64]!r} is no ULID")
    number = 0
    for character in ulid[:TIME_LENGTH]:
        number = number << 5 | ALPHABET.index(character)
    return number


def _encoded(milliseconds: int, low: int) -> str:
    number = milliseconds << 80 | low
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))

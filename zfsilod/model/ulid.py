"""ULIDs: 128 bits in 26 characters that sort by creation time (github.com/ulid/spec)."""

from __future__ import annotations

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, in lower case
LENGTH = 26
ULID = "[0-9a-hjkmnp-tv-z]{26}"  # as a pattern


def new_ulid() -> str:
    """Return a new ULID: 48 bits of milliseconds since 1970, 80 random bits."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))

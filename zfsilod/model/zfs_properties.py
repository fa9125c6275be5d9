"""The ZFS properties that a volume's user may choose, and the values that each may have. No I/O.

What is not in the table is refused by name: a property that zfsilo sets itself, one that means
nothing for a zvol, or one that could hurt other volumes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs


class Choice(NamedTuple):
    """The values that a property may have: as a pattern, and for people."""

    pattern: str
    values: str


def _one_of(*values: str) -> Choice:
    return Choice("|".join(re.escape(each) for each in values), ", ".join(values))


CACHES = _one_of("all", "metadata", "none")
CHOICES = {
    "checksum": _one_of(
        "on", "fletcher2", "fletcher4", "sha256", "sha512", "skein", "edonr", "blake3"
    ),  # no "off": a filesystem on it would hear of no error
    "compression": Choice(
        r"on|off|lz4|lzjb|zle|gzip(-[1-9])?|zstd(-1?[0-9])?"
        r"|zstd-fast(-([1-9]|[1-9]0|100|500|1000))?",
        "on, off, lz4, lzjb, zle, gzip, gzip-1 to -9, zstd, zstd-1 to -19, zstd-fast, "
        "zstd-fast-1 to -10 and on in tens to -100, -500, -1000",
    ),
    "copies": _one_of("1", "2", "3"),
    "dedup": _one_of(
        "on",
        "off",
        "verify",
        "sha256",
        "sha256,verify",
        "sha512",
        "sha512,verify",
        "skein",
        "skein,verify",
        "edonr,verify",
        "blake3",
        "blake3,verify",
    ),
    "logbias": _one_of("latency", "throughput"),
    "primarycache": CACHES,
    "redundant_metadata": _one_of("all", "most", "some", "none"),
    "secondarycache": CACHES,
    "sync": _one_of("standard", "always", "disabled"),
}
FIXED = "volblocksize"  # at the creation only; checks.check_block_size
ENCRYPTION = ("encryption", "keyformat", "keylocation", "pbkdf2iters")
ENCRYPTED = (
    "a volume has no key of its own, which would have to be loaded after every boot before it can "
    "be served: encrypt server.root, and all volumes in it are"
)


def check_properties(properties: Pairs, *, new: bool) -> Pairs:
    """Return ZFS properties that a caller may set, else raise InvalidArgument naming the first.

    `new`: for a volume that is created; in an update "" makes a property inherited again.
    """
    for name, value in properties:
        if name in ENCRYPTION:
            raise _bad(name, f"{name} is not set on a volume: {ENCRYPTED}")
        if name == FIXED and not new:
            raise _bad(name, f"{name} is chosen when a volume is created, and never again")
        choice = CHOICES.get(name)
        if choice is None:
            known = ", ".join(sorted((*CHOICES, FIXED)))
            raise _bad(name, f"the property {name[:80]!r} is not the caller's to set: {known} are")
        if (new or value) and not re.fullmatch(choice.pattern, value):
            raise _bad(name, f"{name} may be {choice.values}, not {value[:80]!r}")
    return tuple(sorted(properties))


def _bad(name: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="BAD_PROPERTY", property=name[:80])

"""ZFS properties that a user may set on a volume, and their values. Pure.

Properties outside the table are refused: zfsilo sets them itself, they do not apply to a zvol, or
they could harm other volumes.
"""

from __future__ import annotations

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs


class Choice:
    """The values of a property, as a pattern and as text."""

    def __init__(self, pattern: str, values: str) -> None:
        self.pattern = pattern
        self.values = values


def _one_of(*values: str) -> Choice:
    return Choice("|".join(values), ", ".join(values))


CACHES = _one_of("all", "metadata", "none")
CHOICES = {
    "checksum": _one_of(
        "on", "fletcher2", "fletcher4", "sha256", "sha512", "skein", "edonr", "blake3"
    ),  # no "off": corruption would reach the filesystem unnoticed
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
HIDDEN = {"volmode": "dev", "snapdev": "hidden"}  # the server scans no partitions of a volume
FIXED = "volblocksize"  # at creation only
ENCRYPTION = ("encryption", "keyformat", "keylocation", "pbkdf2iters")
ENCRYPTED = (
    "a volume has no encryption key of its own, since each key would have to be loaded after every "
    "boot; encrypt server.root instead, and all volumes inherit it"
)


def check_new(properties: Pairs, default_block: int) -> tuple[Pairs, int]:
    """Return the ZFS properties of a new volume and its volblocksize, or raise InvalidArgument."""
    from zfsilod.model.validation import check_block_size  # a worker makes no new value

    block = check_block_size(dict(properties), default_block)
    others = tuple(pair for pair in properties if pair[0] != FIXED)
    return check_properties(others, new=True), block


def check_properties(properties: Pairs, *, new: bool) -> Pairs:
    """Return ZFS properties that a caller may set, else raise InvalidArgument.

    `new`: at the creation of a volume. In an update the value "" resets a property to inherited.
    """
    import re  # takes 8 ms; a worker checks no value

    for name, value in properties:
        if name in ENCRYPTION:
            raise _bad(name, f"{name} cannot be set on a volume: {ENCRYPTED}")
        if name == FIXED and not new:
            raise _bad(name, f"{name} cannot be changed after the creation of a volume")
        choice = CHOICES.get(name)
        if choice is None:
            known = ", ".join(sorted((*CHOICES, FIXED)))
            raise _bad(name, f"property {name[:80]!r} cannot be set; use {known}")
        if (new or value) and not re.fullmatch(choice.pattern, value):
            raise _bad(name, f"invalid value {value[:80]!r} of {name}; use {choice.values}")
    return tuple(sorted(properties))


def _bad(name: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="BAD_PROPERTY", property=name[:80])

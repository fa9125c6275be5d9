"""Sizes, ages and names, as people type them, and ages as they read them; no floats."""

from __future__ import annotations

import re

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.sizes import UNITS

SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,19}))?(?:([KMGTPE])(?:iB)?|B)?", re.IGNORECASE)
LARGEST = 1 << 62  # the sum of two still fits into a message
LONGEST_S = 365 * 86400
MOST_DAYS = 3650


def parse_size(text: str) -> int:
    """Return bytes: 10G, 512MiB, 1.5T or a plain number. Units are powers of 1024, as for zfs.

    What is not a whole number of bytes is rounded up.
    """
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(_size_hint(text), reason="BAD_SIZE")
    whole, fraction, unit = found[1], found[2] or "", found[3]
    scale = 1 << (10 * (UNITS.index(unit.upper()) + 1)) if unit else 1
    size: int = -(-int(whole + fraction) * scale // 10 ** len(fraction))
    if size > LARGEST:
        raise InvalidArgument(f"{text} is more than any volume can have", reason="BAD_SIZE")
    return size


def parse_seconds(text: str) -> float:
    """Return a time span in seconds, for argparse."""
    found = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else -1.0
    if not 0 <= found <= LONGEST_S:
        raise InvalidArgument(f"{text[:80]!r} is no number of seconds", reason="USAGE")
    return found


def parse_timeout(text: str) -> float:
    """Return how long to wait for an answer, for argparse: nobody answers in no time at all."""
    found = parse_seconds(text)
    if not found:
        raise InvalidArgument("with a timeout of 0 nobody can answer", reason="USAGE")
    return found


def parse_days(text: str) -> int:
    """Return how long something is good, for argparse."""
    found = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0
    if not 1 <= found <= MOST_DAYS:
        raise InvalidArgument(
            f"{text[:80]!r} is no number of days from 1 to {MOST_DAYS}", reason="USAGE"
        )
    return found


def parse_number(text: str) -> int:
    """Return a whole number that every field of a message can hold, for argparse."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidArgument(f"{text[:80]!r} is no number from 0 to 999999999", reason="USAGE")
    return int(text)


def _size_hint(text: str) -> str:
    if re.fullmatch(r"[0-9.]+[KMGTPE]B", text.strip(), re.IGNORECASE):
        return f"{text} could mean two sizes: write {text[:-1]}iB (powers of 1024) or plain bytes"
    return f"{text[:80]!r} is no size: write 10G, 512MiB, 1.5T, or bytes"


def show_age(seconds: int) -> str:
    """Return a time span in its largest unit: 42s, 7m, 3h, 12d."""
    if seconds < 0:  # the clocks of two hosts
        return "0s"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def bare(name: str, collection: str) -> str:
    """Return an id, whether an id or a resource name was typed: volumes/data or data."""
    return name.removeprefix(f"{collection}/")


def resource(name: str, collection: str) -> str:
    """Return a resource name, whether an id or a resource name was typed."""
    return f"{collection}/{bare(name, collection)}"


def assignments(texts: list[str], what: str) -> dict[str, str]:
    """Return NAME=VALUE arguments as a mapping."""
    found: dict[str, str] = {}
    for text in texts:
        name, is_there, value = text.partition("=")
        if not is_there or not name:
            raise InvalidArgument(f"{text[:80]!r} is no {what}: write NAME=VALUE", reason="USAGE")
        found[name] = value
    return found


def changes(texts: list[str], what: str) -> tuple[dict[str, str], list[str]]:
    """Return NAME=VALUE arguments as a mapping, and the names of the NAME- ones."""
    removed = [text[:-1] for text in texts if is_removal(text)]
    return assignments([text for text in texts if not is_removal(text)], what), removed


def is_removal(text: str) -> bool:
    """Tell whether an argument is NAME-: no name of ours ends like that."""
    return len(text) > 1 and text.endswith("-") and "=" not in text

"""Parsers of typed arguments: sizes, time spans, numbers, names, NAME=VALUE pairs. No floats."""

from __future__ import annotations

import re

from zfsilod.model import deadlines
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.sizes import UNITS

SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,19}))?(?:([KMGTPE])(?:iB)?|B)?", re.IGNORECASE)
LARGEST = 1 << 62  # the sum of two still fits into a message
LONGEST_S = 365 * 86400
MOST_DAYS = 3650


def parse_size(text: str) -> int:
    """Return bytes: 10G, 512MiB, 1.5T or a plain number. Units are powers of 1024, as for zfs.

    A fraction of a byte is rounded up.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None:
        message = f"invalid size {text[:80]!r}: write 10G, 512MiB, 1.5T, or bytes"
        if re.fullmatch(r"[0-9.]+[KMGTPE]B", text.strip(), re.IGNORECASE):
            unambiguous = f"{text.strip()[:-1].upper()}iB"
            message = f"ambiguous size {text}: write {unambiguous} (powers of 1024) or plain bytes"
        raise InvalidArgument(message, reason="BAD_SIZE")
    whole, fraction, unit = match[1], match[2] or "", match[3]
    scale = 1 << (10 * (UNITS.index(unit.upper()) + 1)) if unit else 1
    size: int = -(-int(whole + fraction) * scale // 10 ** len(fraction))
    if size > LARGEST:
        raise InvalidArgument(f"size {text} is larger than any volume can be", reason="BAD_SIZE")
    return size


def parse_seconds(text: str) -> float:
    """Return a time span in seconds, for argparse."""
    seconds = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else -1.0
    if not 0 <= seconds <= LONGEST_S:
        raise InvalidArgument(
            f"invalid number of seconds {text[:80]!r}: expected 0 to {LONGEST_S}", reason="USAGE"
        )
    return seconds


def parse_timeout(text: str) -> float:
    """Return a timeout in seconds, for argparse: more than 0, and as the daemon takes it."""
    seconds = parse_seconds(text)
    if not seconds:
        raise InvalidArgument("invalid timeout 0: it must be more than 0 seconds", reason="USAGE")
    return min(max(seconds, deadlines.SHORTEST_S), deadlines.LONGEST_S)


def parse_days(text: str) -> int:
    """Return a validity in days, for argparse."""
    days = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0
    if not 1 <= days <= MOST_DAYS:
        raise InvalidArgument(
            f"invalid number of days {text[:80]!r}: expected 1 to {MOST_DAYS}", reason="USAGE"
        )
    return days


def parse_number(text: str) -> int:
    """Return a whole number that every field of a message can hold, for argparse."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidArgument(
            f"invalid number {text[:80]!r}: expected 0 to 999999999", reason="USAGE"
        )
    return int(text)


def bare(name: str, collection: str) -> str:
    """Return the id in an id or resource name: data for both data and volumes/data."""
    return name.removeprefix(f"{collection}/")


def resource(name: str, collection: str) -> str:
    """Return the resource name for an id or resource name: volumes/data for both."""
    return f"{collection}/{bare(name, collection)}"


def transport(word: str) -> str:
    """Return the value of a transport in messages."""
    return f"TRANSPORT_{word.upper()}"


def host_ids(names: list[str]) -> list[str]:
    """Return the ids of hosts, without duplicates."""
    return list(dict.fromkeys(bare(name, "hosts") for name in names))


def mount_options(texts: list[str]) -> list[str]:
    """Return mount options from arguments that hold one each, or several with commas."""
    return [option for text in texts for option in text.split(",") if option]


def assignments(texts: list[str], kind: str) -> dict[str, str]:
    """Return NAME=VALUE arguments as a mapping; `kind` names them in an error."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"invalid {kind} {text[:80]!r}: write NAME=VALUE", reason="USAGE")
        values[name] = value
    return values


def changes(texts: list[str], kind: str) -> tuple[dict[str, str], list[str]]:
    """Return NAME=VALUE arguments as a mapping, and the names of the NAME- arguments."""
    removed = [text[:-1] for text in texts if is_removal(text)]
    return assignments([text for text in texts if not is_removal(text)], kind), removed


def is_removal(text: str) -> bool:
    """Tell whether an argument is NAME-: no id or label name ends with a hyphen."""
    return len(text) > 1 and text.endswith("-") and "=" not in text


def changed_labels(labels: dict[str, str], texts: list[str]) -> dict[str, str]:
    """Return labels with NAME=VALUE and NAME- arguments applied."""
    values, removed = changes(texts, "label")
    return {name: value for name, value in (labels | values).items() if name not in removed}


def changed_hosts(hosts: list[str], texts: list[str]) -> list[str]:
    """Return host ids with HOST and HOST- arguments applied."""
    removed = [text[:-1] for text in texts if is_removal(text)]
    added = [text for text in texts if not is_removal(text)]
    return [host for host in host_ids([*hosts, *added]) if host not in removed]


def check_one_or_all(name: str | None, metavar: str, *, everything: bool) -> None:
    """Require either a name or --all."""
    if bool(name) == everything:
        both = ", not both" if name else ""
        raise InvalidArgument(f"name a {metavar}, or use --all{both}", reason="ONE_OR_ALL")

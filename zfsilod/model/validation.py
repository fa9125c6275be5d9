"""Checks of ids, labels, sizes and hosts. Pure: a value in, the value or an error out."""

from __future__ import annotations

import re

from zfsilod.model.errors import Busy, InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.sizes import show_exact, show_size

if TYPE_CHECKING:
    from zfsilod.model.host_facts import IoLimits
    from zfsilod.model.record import Pairs

ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")
UNIT_SUFFIXES = (
    ".service",
    ".socket",
    ".device",
    ".mount",
    ".automount",
    ".swap",
    ".target",
    ".path",
    ".timer",
    ".slice",
    ".scope",
)
LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
MAX_LABELS = 64
MAX_LABEL_BYTES = 256
MAX_LABELS_BYTES = 8192  # all names and values together
ETAG = "the record changed since it was read (etag {asked}, now {now}); read it again"
MIN_BYTES = 1 << 20
MAX_BYTES = 1 << 60
MIN_IOPS, MAX_IOPS = 10, (1 << 32) - 2
MIN_RATE = 2 << 20  # bytes a second
MAX_HOSTS = 256
MAX_MARK = 8000  # a user property has at most 8191 characters: zfsprops(7)
BLOCK_SIZES = tuple(1 << power for power in range(9, 18))
BLOCK_SIZE = re.compile(r"([0-9]{1,6})([kK]?)")


def check_id(value: str, what: str = "id") -> str:
    """Return a valid id, else raise InvalidArgument."""
    if not ID.fullmatch(value):
        raise InvalidArgument(
            f"invalid {what} {value[:140]!r}; use 1 to 128 of a-z 0-9 . _ -, with a letter or "
            "digit at both ends",
            reason="BAD_ID",
        )
    if value.endswith(UNIT_SUFFIXES):
        raise InvalidArgument(
            f"{what} {value} ends like a systemd unit; choose another name",
            reason="BAD_ID",
            id=value,
        )
    return value


def check_labels(labels: Pairs) -> Pairs:
    """Return valid labels, else raise InvalidArgument."""
    if len(labels) > MAX_LABELS:
        raise InvalidArgument(f"too many labels: {len(labels)}, at most {MAX_LABELS}")
    size = sum(len(text.encode()) for pair in labels for text in pair)
    if size > MAX_LABELS_BYTES:
        raise InvalidArgument(
            f"labels of {size} bytes, at most {MAX_LABELS_BYTES} together", reason="TOO_LARGE"
        )
    for name, value in labels:
        if not LABEL.fullmatch(name) or len(value.encode()) > MAX_LABEL_BYTES:
            raise InvalidArgument(
                f"invalid label {name[:80]!r}, or its value has more than {MAX_LABEL_BYTES} bytes"
            )
    return tuple(sorted(labels))


def check_etag(asked: str, revision: int) -> None:
    """Raise Busy when the caller read an earlier revision."""
    if asked and asked != str(revision):
        raise Busy(ETAG.format(asked=asked[:40], now=revision), reason="ETAG")


def check_size(capacity_bytes: int, limit_bytes: int, block: int) -> int:
    """Return a size rounded up to whole blocks, else raise InvalidArgument."""
    if not MIN_BYTES <= capacity_bytes <= MAX_BYTES:
        raise InvalidArgument(
            f"invalid size {show_size(capacity_bytes)}; use {show_size(MIN_BYTES)} to "
            f"{show_size(MAX_BYTES)}",
            reason="BAD_SIZE",
        )
    size = round_up(capacity_bytes, block)
    if limit_bytes and size > limit_bytes:
        raise InvalidArgument(
            f"{show_exact(capacity_bytes)}, rounded up to blocks of {show_size(block)}, is "
            f"{show_exact(size)}, which exceeds the limit of {show_exact(limit_bytes)}",
            reason="BAD_SIZE",
        )
    return size


def round_up(size: int, block: int) -> int:
    """Return the next multiple of the block size."""
    return -(-size // block) * block


def check_block_size(properties: dict[str, str], default: int) -> int:
    """Return the volblocksize asked for, else raise InvalidArgument."""
    text = properties.get("volblocksize", str(default))
    match = BLOCK_SIZE.fullmatch(text)
    size = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if size not in BLOCK_SIZES:
        raise InvalidArgument(
            f"invalid volblocksize {text[:20]!r}; use a power of two from 512 to 128k",
            reason="BAD_PROPERTY",
            property="volblocksize",
        )
    return size


def check_limits(limits: IoLimits) -> IoLimits:
    """Return valid limits of I/O, else raise InvalidArgument. See docs/limits.md for the least."""
    bounds = {"iops": (MIN_IOPS, MAX_IOPS), "bytes": (MIN_RATE, MAX_BYTES)}
    for name in limits.FIELDS:
        value = getattr(limits, name)
        least, most = bounds[name.rpartition("_")[2]]
        if value and not least <= value <= most:
            raise InvalidArgument(
                f"invalid limit_{name} {value}: use {least} to {most} a second, or 0 for no limit",
                reason="BAD_LIMIT",
                field=f"limit_{name}",
            )
    return limits


def check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Return valid host ids, or "*" for any registered host."""
    if len(hosts) > MAX_HOSTS:
        raise InvalidArgument(f"too many hosts: {len(hosts)}, at most {MAX_HOSTS}")
    return tuple(sorted({host if host == "*" else check_id(host, "host id") for host in hosts}))


def check_fit(values: Pairs, name: str) -> Pairs:
    """Return user properties that ZFS can store, else raise InvalidArgument."""
    for mark, value in values:
        if len(value) > MAX_MARK:
            raise InvalidArgument(
                f"{mark.removeprefix('zfsilo:')} of {name} too long: {len(value)} characters, "
                f"at most {MAX_MARK}",
                reason="TOO_LONG",
                name=name,
            )
    return values

"""What a volume may be: its size, its room in the pool, its properties, its hosts. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zfsilod.errors import InvalidArgument, ResourceExhausted
from zfsilod.plan import marks
from zfsilod.record import Pairs, Record
from zfsilod.verbs import check_id

if TYPE_CHECKING:
    from zfsilod.model import Volume
    from zfsilod.verbs import World

MIN_BYTES = 1 << 20
MAX_BYTES = 1 << 60
MAX_HOSTS = 256
MAX_MARK = 8000  # of 8191 characters that a user property may have: zfsprops(7)
BLOCK_SIZES = tuple(1 << power for power in range(9, 18))
BLOCK_SIZE = re.compile(r"([0-9]{1,6})([kK]?)")
PROPERTY = re.compile(r"[a-z][a-z0-9]{0,62}")
PROPERTY_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,254}")
OURS = (
    "keylocation", "volsize", "volblocksize", "volmode", "snapdev", "refreservation",
    "reservation", "readonly",
)  # fmt: skip


class Room(Record):
    """What `zfs` says of a dataset root: bytes, quotas and reservations taken into account."""

    available_bytes: int
    total_bytes: int


def check_size(capacity_bytes: int, limit_bytes: int, block: int) -> int:
    """Return a size rounded up to whole blocks, else raise InvalidArgument."""
    if not MIN_BYTES <= capacity_bytes <= MAX_BYTES:
        raise InvalidArgument(
            f"capacity_bytes is {capacity_bytes}: it must be 1 MiB to 1 EiB", reason="BAD_SIZE"
        )
    size = round_up(capacity_bytes, block)
    if limit_bytes and size > limit_bytes:
        raise InvalidArgument(
            f"{capacity_bytes} bytes rounded up to blocks of {block} are {size}, more than the "
            f"limit of {limit_bytes}",
            reason="BAD_SIZE",
        )
    return size


def round_up(size: int, block: int) -> int:
    """Return the next multiple of the block size."""
    return -(-size // block) * block


def check_room(volume: Volume, room: Room, world: World, *, before: int = 0) -> None:
    """Refuse what cannot fit: a thick volume in the free space, thin ones by `overcommit`."""
    grown = volume.capacity_bytes - before
    if not volume.thin and grown > room.available_bytes:
        raise ResourceExhausted(
            f"{volume.id} needs {grown} bytes, {world.settings.root} has {room.available_bytes} "
            "free: make it smaller or thin, or free space",
            reason="POOL_FULL", volume=volume.id,
        )  # fmt: skip
    promised = world.txn.promised()
    allowed = int(room.total_bytes * world.settings.overcommit)
    if volume.thin and promised + grown > allowed:
        raise ResourceExhausted(
            f"thin volumes may promise {allowed} bytes (give.overcommit times the pool), "
            f"{promised} are promised, {grown} more do not fit",
            reason="OVERCOMMIT", volume=volume.id,
        )  # fmt: skip


def check_block_size(properties: dict[str, str], default: int) -> int:
    """Return the volblocksize asked for, else raise InvalidArgument."""
    text = properties.get("volblocksize", str(default))
    found = BLOCK_SIZE.fullmatch(text)
    size = int(found[1]) * (1024 if found[2] else 1) if found else 0
    if size not in BLOCK_SIZES:
        raise InvalidArgument(
            f"volblocksize {text[:20]!r} is no power of two from 512 to 128k",
            reason="BAD_PROPERTY", property="volblocksize",
        )  # fmt: skip
    return size


def check_properties(properties: Pairs) -> Pairs:
    """Return ZFS properties that a caller may set, else raise InvalidArgument naming the first."""
    for name, value in properties:
        if name in OURS or not PROPERTY.fullmatch(name):
            raise InvalidArgument(
                f"the property {name[:80]!r} is not the caller's to set",
                reason="BAD_PROPERTY", property=name[:80],
            )  # fmt: skip
        if value and not PROPERTY_VALUE.fullmatch(value):
            raise InvalidArgument(
                f"{name} has a malformed value {value[:80]!r}",
                reason="BAD_PROPERTY", property=name,
            )  # fmt: skip
    return tuple(sorted(properties))


def check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Return valid host ids, or "*" for any registered host."""
    if len(hosts) > MAX_HOSTS:
        raise InvalidArgument(f"{len(hosts)} hosts are too many: at most {MAX_HOSTS}")
    return tuple(sorted({each if each == "*" else check_id(each, "host id") for each in hosts}))


def check_marks(volume: Volume) -> Volume:
    """Return a volume whose marks fit on its zvol, else raise InvalidArgument."""
    for name, value in marks(volume).items():
        if len(value) > MAX_MARK:
            raise InvalidArgument(
                f"the {name.removeprefix('zfsilo:')} of {volume.id} are too long: {len(value)} "
                f"characters, ZFS keeps {MAX_MARK}",
                reason="TOO_LONG", volume=volume.id,
            )  # fmt: skip
    return volume

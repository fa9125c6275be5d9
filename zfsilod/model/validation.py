"""What a volume may be: its size, its room in the pool, its hosts. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zfsilod.engine.plans import marks
from zfsilod.model.errors import InvalidArgument, ResourceExhausted
from zfsilod.model.record import Pairs, Record, pairs
from zfsilod.model.sizes import show_exact, show_size
from zfsilod.requests.request import check_id

if TYPE_CHECKING:
    from zfsilod.model.records import Volume
    from zfsilod.requests.request import Settings, View

MIN_BYTES = 1 << 20
MAX_BYTES = 1 << 60
MAX_HOSTS = 256
MAX_MARK = 8000  # of 8191 characters that a user property may have: zfsprops(7)
BLOCK_SIZES = tuple(1 << power for power in range(9, 18))
BLOCK_SIZE = re.compile(r"([0-9]{1,6})([kK]?)")


class Room(Record):
    """What `zfs` says of a dataset root: bytes, quotas and reservations taken into account."""

    available_bytes: int
    total_bytes: int


def check_size(capacity_bytes: int, limit_bytes: int, block: int) -> int:
    """Return a size rounded up to whole blocks, else raise InvalidArgument."""
    if not MIN_BYTES <= capacity_bytes <= MAX_BYTES:
        raise InvalidArgument(
            f"a volume cannot have {show_size(capacity_bytes)}: it must be {show_size(MIN_BYTES)} "
            f"to {show_size(MAX_BYTES)}",
            reason="BAD_SIZE",
        )
    size = round_up(capacity_bytes, block)
    if limit_bytes and size > limit_bytes:
        raise InvalidArgument(
            f"{show_exact(capacity_bytes)} rounded up to blocks of {show_size(block)} are "
            f"{show_exact(size)}, more than the limit of {show_exact(limit_bytes)}",
            reason="BAD_SIZE",
        )
    return size


def round_up(size: int, block: int) -> int:
    """Return the next multiple of the block size."""
    return -(-size // block) * block


def check_room(volume: Volume, room: Room, view: View, *, before: int = 0) -> None:
    """Refuse what cannot fit: nothing new below the reserve, thin volumes by `overcommit`."""
    grown = volume.capacity_bytes - before
    if not grown:
        return
    free = room.available_bytes - reserved_bytes(room, view.settings.reserve)
    if grown > free if not volume.thin else free <= 0:
        raise ResourceExhausted(
            f"{volume.id} needs {show_size(0 if volume.thin else grown)} at once, "
            f"{view.settings.root} has {show_size(room.available_bytes)} free and keeps a reserve "
            f"of {view.settings.reserve:.0%} (server.reserve): make it smaller or thin, or free "
            "space",
            reason="POOL_FULL",
            volume=volume.id,
        )
    promised = view.txn.promised()
    allowed = int(room.total_bytes * view.settings.overcommit)
    if volume.thin and promised + grown > allowed:
        raise ResourceExhausted(
            f"thin volumes may promise {show_size(allowed)} (server.overcommit times the pool), "
            f"{show_size(promised)} are promised, {show_size(grown)} more do not fit",
            reason="OVERCOMMIT",
            volume=volume.id,
        )


def reserved_bytes(room: Room, share: float) -> int:
    """Return the bytes that a share of a dataset root is."""
    return int(room.total_bytes * share)


def room_for(room: Room, settings: Settings, promised_bytes: int, *, thin: bool) -> int:
    """Return the size of the largest volume that can still be created."""
    free = max(0, room.available_bytes - reserved_bytes(room, settings.reserve))
    if not thin:
        return free
    allowed = int(room.total_bytes * settings.overcommit)
    return max(0, allowed - promised_bytes) if free else 0


def nearly_full(room: Room, settings: Settings) -> str:
    """Return a sentence for a dataset root that fills up; "": there is room enough."""
    if room.available_bytes > reserved_bytes(room, settings.reserve_warning):
        return ""
    share = room.available_bytes / room.total_bytes if room.total_bytes else 0.0
    return (
        f"{settings.root} has {share:.0%} of its room left: thin volumes will soon fail to write; "
        "free space or enlarge the pool"
    )


def check_block_size(properties: dict[str, str], default: int) -> int:
    """Return the volblocksize asked for, else raise InvalidArgument."""
    text = properties.get("volblocksize", str(default))
    found = BLOCK_SIZE.fullmatch(text)
    size = int(found[1]) * (1024 if found[2] else 1) if found else 0
    if size not in BLOCK_SIZES:
        raise InvalidArgument(
            f"volblocksize {text[:20]!r} is no power of two from 512 to 128k",
            reason="BAD_PROPERTY",
            property="volblocksize",
        )
    return size


def check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Return valid host ids, or "*" for any registered host."""
    if len(hosts) > MAX_HOSTS:
        raise InvalidArgument(f"{len(hosts)} hosts are too many: at most {MAX_HOSTS}")
    return tuple(sorted({each if each == "*" else check_id(each, "host id") for each in hosts}))


def check_marks(volume: Volume) -> Volume:
    """Return a volume whose marks fit on its zvol, else raise InvalidArgument."""
    check_fit(pairs(marks(volume)), volume.id)
    return volume


def check_fit(values: Pairs, name: str) -> Pairs:
    """Return user properties that ZFS can keep, else raise InvalidArgument."""
    for status, value in values:
        if len(value) > MAX_MARK:
            raise InvalidArgument(
                f"the {status.removeprefix('zfsilo:')} of {name} are too long: {len(value)} "
                f"characters, ZFS keeps {MAX_MARK}",
                reason="TOO_LONG",
                name=name,
            )
    return values

"""Free space of the pool, and the volumes that fit into it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import ResourceExhausted
from zfsilod.model.record import Record
from zfsilod.model.sizes import show_size

if TYPE_CHECKING:
    from zfsilod.model.records import Volume
    from zfsilod.model.settings import Settings


class PoolSpace(Record):
    """Space below the dataset root as zfs(8) reports it: quotas and reservations are counted."""

    available_bytes: int
    total_bytes: int
    revision: int = 0  # of the store when the space was measured


def check_space(
    volume: Volume, space: PoolSpace, settings: Settings, promised_bytes: int, *, before: int = 0
) -> None:
    """Raise ResourceExhausted when a volume that grows from `before` bytes does not fit.

    Nothing is created or grown below the reserve, and thin volumes up to `overcommit` only.
    """
    growth = volume.capacity_bytes - before
    if not growth:
        return
    free = space.available_bytes - reserved_bytes(space, settings.reserve)
    if growth > free if not volume.thin else free <= 0:
        raise ResourceExhausted(
            f"{volume.id} needs {show_size(0 if volume.thin else growth)} at once, but "
            f"{settings.root} has {show_size(space.available_bytes)} free and keeps a reserve of "
            f"{settings.reserve:.0%} (server.reserve); make it smaller or thin, or free space",
            reason="POOL_FULL",
            volume=volume.id,
        )
    limit = int(space.total_bytes * settings.overcommit)
    if volume.thin and promised_bytes + growth > limit:
        raise ResourceExhausted(
            f"thin volumes are limited to {show_size(limit)} in all (server.overcommit times the "
            f"pool) and have {show_size(promised_bytes)}; {show_size(growth)} more do not fit",
            reason="OVERCOMMIT",
            volume=volume.id,
        )


def check_reserve(space: PoolSpace, settings: Settings, what: str) -> None:
    """Raise ResourceExhausted when nothing is free above the reserve."""
    if space.available_bytes <= reserved_bytes(space, settings.reserve):
        raise ResourceExhausted(
            f"{what} gets nothing more: {settings.root} has {show_size(space.available_bytes)} "
            f"free and keeps a reserve of {settings.reserve:.0%} (server.reserve); free space",
            reason="POOL_FULL",
        )


def reserved_bytes(space: PoolSpace, share: float) -> int:
    """Return a share of the dataset root in bytes."""
    return int(space.total_bytes * share)


def largest_volume(space: PoolSpace, settings: Settings, promised_bytes: int, *, thin: bool) -> int:
    """Return the size of the largest volume that can still be created."""
    free = max(0, space.available_bytes - reserved_bytes(space, settings.reserve))
    if not thin:
        return free
    limit = int(space.total_bytes * settings.overcommit)
    return max(0, limit - promised_bytes) if free else 0


def nearly_full(space: PoolSpace, settings: Settings) -> str:
    """Return a warning about a dataset root that is nearly full, or ""."""
    if space.available_bytes > reserved_bytes(space, settings.reserve_warning):
        return ""
    share = space.available_bytes / space.total_bytes if space.total_bytes else 0.0
    return (
        f"{settings.root} has {share:.0%} of its space left, and thin volumes will soon fail to "
        "write; free space or enlarge the pool"
    )

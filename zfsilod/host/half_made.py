"""The zvol that a power cut left when it stopped a `zfs create` or a `zfs clone`.

ZFS makes a dataset in one transaction group, and sets its properties in the groups after it:
zfs_ioc_create() and zfs_ioc_clone() of OpenZFS. A power cut between them leaves a zvol without
marks. Whose it is must then be proved by all else that is known of it.
"""

from __future__ import annotations

import time

from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.ulid import moment_of

if TYPE_CHECKING:
    from zfsilod.host.zfs_output import Properties
    from zfsilod.model.record import Pairs

# The logical bytes of a new zvol and of a new clone, in OpenZFS 2.3, for every volblocksize. The
# first block that is written adds 8 KiB or more: a block of 4 KiB and one that points to it.
NEW_ZVOL_BYTES, NEW_CLONE_BYTES = 28672, 4096
NO_ORIGIN = ("-", "-")  # value and source; `zfs get all` leaves it out


def is_written(properties: Properties) -> bool:
    """Tell whether more was written than by the creation.

    `properties`: `logicalreferenced`, `logicalused` and, of a clone, `origin`.
    """
    if properties.get("origin", NO_ORIGIN) == NO_ORIGIN:
        return int(properties["logicalreferenced"][0]) > NEW_ZVOL_BYTES
    return int(properties["logicalused"][0]) > NEW_CLONE_BYTES


def is_half_made(properties: Properties, operation: str, planned: Pairs) -> bool:
    """Tell whether all properties of a zvol are those that an operation left in the middle.

    It was made after the operation was stored and before this boot, as planned, nothing was written
    to it, and nobody has given it a user property. `properties`: all of them.
    """
    booted_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    began_at = moment_of(operation) // 1000
    return (
        properties.get("type", ("", ""))[0] == "volume"
        and began_at <= int(properties["creation"][0]) < int(booted_at)
        and all(properties.get(name, ("", ""))[0] == value for name, value in planned)
        and not is_written(properties)
        and not any(
            ":" in name and source in ("local", "received")
            for name, (_value, source) in properties.items()
        )
    )

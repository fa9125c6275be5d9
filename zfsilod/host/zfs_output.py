"""Options and output of zfs(8): tables of properties, and errors from its messages.

The messages are those of OpenZFS 2.3 in the locale C; tests/lab checks them with real pools.
"""

from __future__ import annotations

from zfsilod.model.errors import (
    Busy,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import pairs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.host.run import Completed
    from zfsilod.model.record import Pairs

PREFIX = "zfsilo:"  # of the user properties of zfsilo
NATIVE = "type"  # a property that every dataset has, with a value that nobody chooses
FIELDS = 4  # of a row
UNITS = {unit: 1024**power for power, unit in enumerate("BKMGTPE")}

ENCRYPTION = (("encryption", "aes-256-gcm"), ("keyformat", "raw"), ("keylocation", "prompt"))
"""Properties of a new encryption root: its key is read from the standard input of zfs."""

Properties = dict[str, tuple[str, str]]
"""Properties of one dataset by name: (value, source), as in zfs-get(8)."""


def pool_of(dataset: str) -> str:
    """Return the pool of a dataset."""
    return dataset.partition("/")[0]


def asked(names: Iterable[str]) -> str:
    """Return names of properties as `zfs get` takes them: user properties first, a native one last.

    A user property may have any value. One with line breaks forges rows of another dataset; these
    stand between two rows of its own then, and `table` refuses them.
    """
    ordered = sorted(names, key=lambda name: ":" not in name)
    return ",".join(ordered if ":" not in ordered[-1] else (*ordered, NATIVE))


def table(stdout: str) -> dict[str, Properties]:
    """Parse `zfs get -Hp -o name,property,value,source`, by dataset; a value may contain tabs.

    Raises Unavailable for what a value with a line break makes of it: a row with too few fields, a
    property that is listed twice, or rows of a dataset between those of another.
    """
    datasets: dict[str, Properties] = {}
    latest = ""
    *lines, rest = stdout.split("\n")
    for line in (*lines, *([rest] if rest.count("\t") >= FIELDS - 1 else [])):
        name, key, value, source = _fields(line)
        properties = datasets.setdefault(name, {})
        if key in properties or (properties and name != latest):
            raise _forged(name, key)
        properties[key] = (value, source)
        latest = name
    return datasets


def _fields(line: str) -> tuple[str, str, str, str]:
    name, _, after = line.partition("\t")
    key, _, rest = after.partition("\t")
    value, tab, source = rest.rpartition("\t")
    if not tab:
        raise _forged(name, key)
    return name, key, value, source


def _forged(name: str, key: str) -> Unavailable:
    return Unavailable(
        f"the list of zfs is wrong at {key!r:.80} of {name!r:.255}: a property has a value with a "
        "line break; see `zfs get all`, and set it to another value"
    )


def first_line(done: Completed) -> str:
    """Return the first line of the error output; the lines after it are advice."""
    return done.stderr.partition("\n")[0].strip()


def reason_of(done: Completed, command: str, dataset: str) -> str:
    """Return "reason" of the error "cannot create 'tank/x': reason" for exactly this dataset."""
    return first_line(done).removeprefix(f"cannot {command} '{dataset}': ")


def refused(done: Completed, reason: str, dataset: str) -> ZfsiloError:
    """Return the error for the reason of a failed command; CommandFailed for an unknown one."""
    pool = pool_of(dataset)
    if reason in ("out of space", "size is greater than available space"):
        return ResourceExhausted(
            f"the pool {pool} has no space for {dataset}; free space or use a thin volume",
            reason="NO_SPACE",
            dataset=dataset,
        )
    if reason == f"cannot open '{pool}': no such pool":
        return no_pool(pool)
    if reason.endswith("pool I/O is currently suspended"):
        return suspended(pool)
    if "key is not loaded" in reason or "keys not loaded" in reason.lower():
        return no_key(dataset.rpartition("/")[0] or dataset, dataset)
    if reason in ("dataset is read-only", "pool is read-only"):
        return read_only(pool)
    if reason in ("dataset does not exist", f"cannot open '{dataset}': dataset does not exist"):
        return missing(dataset)
    if reason == "dataset is busy":
        return Busy(f"the dataset {dataset} is busy", reason="DATASET_BUSY", dataset=dataset)
    if reason.startswith("volume size "):
        return InvalidArgument(f"zfs: {reason}", reason="BAD_SIZE", dataset=dataset)
    if reason.startswith(("'", "invalid property '", "bad property list: ")):
        name = reason.split("'")[1] if "'" in reason else ""
        return InvalidArgument(f"zfs: {reason}", reason="BAD_PROPERTY", property=name)
    return done.failed()


def missing(dataset: str) -> FailedPrecondition:
    """Return the error for a dataset that is needed and does not exist."""
    return FailedPrecondition(
        f"the dataset {dataset} does not exist", reason="NO_DATASET", dataset=dataset
    )


def lost(snapshot: str) -> FailedPrecondition:
    """Return the error for a snapshot that does not exist."""
    message = f"the snapshot {snapshot} does not exist"
    return FailedPrecondition(message, reason="LOST", dataset=snapshot)


def not_older(base_uid: str, uid: str) -> InvalidArgument:
    """Return the error for a base that was not taken before its snapshot."""
    return InvalidArgument(
        f"the snapshot zfsilo-{base_uid} is not older than zfsilo-{uid}: changes are read from an "
        "older snapshot to a newer one",
        reason="BAD_BASE",
    )


def no_pool(pool: str) -> Unavailable:
    """Return the error for a pool that is not imported."""
    message = f"the pool {pool} is not imported on this host: zpool import {pool}"
    return Unavailable(message, reason="NO_POOL", pool=pool)


def suspended(pool: str) -> Unavailable:
    """Return the error for a pool that waits for its disks: `failmode` in zpoolprops(7)."""
    message = f"the pool {pool} is suspended because its disks failed: zpool clear {pool}"
    return Unavailable(message, reason="POOL_SUSPENDED", pool=pool)


def not_online(pool: str, health: str) -> Unavailable:
    """Return the error for a pool in another state than ONLINE: zpoolconcepts(7)."""
    reason = "POOL_DEGRADED" if health == "DEGRADED" else "POOL_FAULTED"
    return Unavailable(f"the pool {pool} is {health}; see `zpool status`", reason=reason, pool=pool)


def no_key(root: str, dataset: str) -> FailedPrecondition:
    """Return the error for an encrypted dataset whose key is not loaded."""
    return FailedPrecondition(
        f"the key of {root} is not loaded, so {dataset} cannot be used: zfs load-key {root}",
        reason="KEY_NOT_LOADED",
        dataset=dataset,
    )


def not_encrypted(dataset: str) -> Conflict:
    """Return the error for a zvol that is recorded as encrypted and is not."""
    return Conflict(
        f"zvol {dataset} is not encrypted with a key that zfsilo keeps, but its volume is recorded "
        "as encrypted: it is a copy that was sent without `zfs send --raw`; restore it with --raw",
        reason="NOT_ENCRYPTED",
        dataset=dataset,
    )


def mismatch(root: str) -> FailedPrecondition:
    """Return the error for a key that does not open the dataset it belongs to."""
    return FailedPrecondition(
        f"the key that zfsilo has does not open {root}: it was changed with zfs change-key, or the "
        f"pool was rolled back; load the key that it has (zfs load-key {root}), then run "
        "zfsiloctl volume rotate-key",
        reason="KEY_MISMATCH",
        dataset=root,
    )


def read_only(pool: str) -> FailedPrecondition:
    """Return the error for a pool that was imported read-only."""
    return FailedPrecondition(
        f"the pool {pool} is imported read-only: zpool export {pool}; zpool import {pool}",
        reason="POOL_READONLY",
        pool=pool,
    )


def foreign(dataset: str, why: str) -> Conflict:
    """Return the error for an existing dataset that does not belong to the volume."""
    return Conflict(
        f"the dataset {dataset} exists but does not belong to this volume: {why}",
        reason="NOT_OURS",
        dataset=dataset,
    )


def in_bytes(value: str) -> str:
    """Return a size as `zfs get -p` shows it: "16384" for "16K", "0" for "none"."""
    number, unit = value[:-1], value[-1:].upper()
    if number.isdecimal() and unit in UNITS:
        return str(int(number) * UNITS[unit])
    return "0" if value == "none" else value


def property_options(settings: Pairs) -> list[str]:
    """Return the options of zfs-create(8), zfs-snapshot(8) and zfs-clone(8) that set properties."""
    return [arg for name, value in settings for arg in ("-o", f"{name}={value}")]


def own_marks(properties: Properties) -> Pairs:
    """Return the local user properties of zfsilo, without their prefix "zfsilo:"."""
    return pairs(
        {
            name.removeprefix(PREFIX): value
            for name, (value, source) in properties.items()
            if source == "local" and name.startswith(PREFIX)
        }
    )

"""What zfs(8) says, and what it means: names, tables of properties, and reasons of refusals.

The sentences that are told apart here were seen from ZFS 2.3 (tests/lab).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import (
    Busy,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    ZfsiloError,
)

if TYPE_CHECKING:
    from zfsilod.host.run import Completed

UNITS = {unit: 1024**power for power, unit in enumerate("BKMGTPE")}


def pool_of(dataset: str) -> str:
    """Return the pool that a dataset is in."""
    return dataset.partition("/")[0]


def table(stdout: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Parse lines of name, property, value, source; a value may have tabs of its own."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for line in stdout.split("\n"):
        if line.count("\t") >= 3:
            name, key, rest = line.split("\t", 2)
            value, _, source = rest.rpartition("\t")
            found.setdefault(name, {})[key] = (value, source)
    return found


def first_line(done: Completed) -> str:
    """Return the first line of a complaint; what follows is advice."""
    return done.stderr.partition("\n")[0].strip()


def reason_of(done: Completed, request: str, dataset: str) -> str:
    """Return the reason out of "cannot create 'tank/x': reason", for exactly that dataset."""
    return first_line(done).removeprefix(f"cannot {request} '{dataset}': ")


def refused(done: Completed, reason: str, dataset: str) -> ZfsiloError:
    """Return the error that a sentence of zfs stands for."""
    pool = pool_of(dataset)
    if reason in ("out of space", "size is greater than available space"):
        return ResourceExhausted(
            f"the pool {pool} has no room for {dataset}", reason="NO_SPACE", dataset=dataset
        )
    if reason == f"cannot open '{pool}': no such pool":
        return Unavailable(
            f"the pool {pool} is not imported on this host", reason="NO_POOL", pool=pool
        )
    if reason.endswith("pool I/O is currently suspended"):
        return Unavailable(
            f"the pool {pool} is suspended: it lost its disks", reason="POOL_SUSPENDED", pool=pool
        )
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
    """Return the error for a dataset that has to exist and does not."""
    return FailedPrecondition(
        f"the dataset {dataset} does not exist", reason="NO_DATASET", dataset=dataset
    )


def foreign(dataset: str, why: str) -> Conflict:
    """Return the error for a dataset of that name that is not ours."""
    return Conflict(
        f"the dataset {dataset} exists and is not ours: {why}", reason="NOT_OURS", dataset=dataset
    )


def in_bytes(value: str) -> str:
    """Return a size as `zfs get -p` shows it: "16K" as "16384"; "none" is 0 there."""
    number, unit = value[:-1], value[-1:].upper()
    if number.isdecimal() and unit in UNITS:
        return str(int(number) * UNITS[unit])
    return "0" if value == "none" else value

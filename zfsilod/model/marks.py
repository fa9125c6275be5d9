"""Marks of zvols: user properties of ZFS that tell who made a zvol and what happened to it. Pure.

A store that is older than its pool is recognised by them.
"""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

OPERATION = "zfsilo:operation"  # that created the zvol
FILESYSTEM = "zfsilo:filesystem"  # its state: plans.filesystem_mark
EPOCH = "zfsilo:epoch"  # of the last change of access, and the operation that made it
SEALED_KEY = "zfsilo:sealed_key"  # of an encryption root: ROTATION:BASE64, by the store's key
REVERTED = ":reverted"  # after that operation: it was rolled back


def epoch_mark(epoch: int, operation: str) -> str:
    """Return an epoch and the operation that gives it as the text of the mark."""
    return f"{epoch}:{operation}"


def parse_epoch(mark: str) -> tuple[int, str]:
    """Reverse `epoch_mark`. Raises ValueError for other text."""
    number, _colon, operation = mark.partition(":")
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(f"{mark[:64]!r} is not an epoch")
    return int(number), operation


def epoch_fact(dataset: str) -> str:
    """Return the name of the fact that an operation observed the epoch of this zvol."""
    return f"epoch {dataset}"


def find_sign_of_use(marks: Mapping[str, str], first: Mapping[str, str]) -> str:
    """Return why a zvol with these marks is no longer as its creation left it; "": it is.

    `first`: the marks that the creation set.
    """
    if marks.get(OPERATION, "") != first.get(OPERATION, ""):
        return "another operation made it"
    if EPOCH in marks:
        return "it was published"
    if marks.get(FILESYSTEM, "") != first.get(FILESYSTEM, ""):
        return "a filesystem was made on it"
    return ""

"""Errors: the one hierarchy of zfsilo, which all front ends translate.

    ZfsiloError
      InvalidArgument       the request is wrong, whatever the state
      NotFound              the volume, host or operation does not exist
      AlreadyExists         the name is taken, or the resource exists with other parameters
      FailedPrecondition    the request is valid, the state does not allow it
        Conflict            something of that name is on the host and not owned by zfsilo
      PermissionDenied      the caller may not do this
      Unauthenticated       the caller has no valid identity
      ResourceExhausted     pool, store or a limit is full
      Busy                  claimed by an operation, or in use
      Unavailable           cannot be reached or determined now; nothing was changed
      DeadlineExceeded      still running; the operation continues
      Internal              internal error
        CommandFailed       a tool failed in a way that has no reason of its own
        StoreCorrupt        the store cannot be read

The message is one sentence for people: what is wrong, with which resource, and what to do. `reason`
(one of reasons.py) and `facts` are for programs. All three pass unchanged through the store and all
front ends.
"""

from __future__ import annotations

import errno
import os


def show(text: str, *, lines: bool = False) -> str:
    """Return a text that every interface can pass on: printable, apart from line breaks if allowed.

    It may have names of files, processes and datasets, which others choose.
    """
    if text.isprintable():
        return text
    kept = "\n" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode()
        for char in text
    )


def some_of(names: list[str], most: int) -> str:
    """Return the first of some names for people: "a, b, ..."."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


class ZfsiloError(Exception):
    """An error that a caller may see."""

    code = "INTERNAL"
    reason = ""

    def __init__(self, message: str, *, reason: str = "", **facts: str) -> None:
        super().__init__(message)
        self.message = show(message, lines=True)
        self.reason = reason or type(self).reason or _reason_of(type(self).__name__)
        self.facts = {name: show(value, lines=True) for name, value in facts.items()}

    @property
    def name(self) -> str:
        """The error's name on D-Bus, below `org.zfsilo1.Error.`."""
        return type(self).__name__


class InvalidArgument(ZfsiloError):
    """The request is wrong, whatever the state."""

    code = "INVALID_ARGUMENT"


class NotFound(ZfsiloError):
    """The resource does not exist."""

    code = "NOT_FOUND"


class AlreadyExists(ZfsiloError):
    """The name is taken, or the resource exists with other parameters."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(ZfsiloError):
    """The request is valid, the state does not allow it."""

    code = "FAILED_PRECONDITION"


class Conflict(FailedPrecondition):
    """Something of that name is on the host and not owned by zfsilo; it is never changed."""


class PermissionDenied(ZfsiloError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"


class Unauthenticated(ZfsiloError):
    """The caller has no valid identity."""

    code = "UNAUTHENTICATED"


class ResourceExhausted(ZfsiloError):
    """Pool, store or a limit is full."""

    code = "RESOURCE_EXHAUSTED"


class Busy(ZfsiloError):
    """Claimed by a running operation, or in use."""

    code = "ABORTED"


class Unavailable(ZfsiloError):
    """Cannot be reached or determined now. It never means "absent"."""

    code = "UNAVAILABLE"


class DeadlineExceeded(ZfsiloError):
    """The deadline of the call is over; the operation continues."""

    code = "DEADLINE_EXCEEDED"


class Internal(ZfsiloError):
    """An internal error; the journal has the traceback."""

    code = "INTERNAL"


class CommandFailed(Internal):
    """A tool failed in a way that has no reason of its own."""


class StoreCorrupt(Internal):
    """The store cannot be read."""


def _reason_of(name: str) -> str:
    """Return the name of a class as a reason: NOT_FOUND of NotFound."""
    words = "".join(f"_{char}" if char.isupper() else char for char in name)
    return words.lstrip("_").upper()


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
BAD_DISK = (errno.EIO, errno.EROFS)
OWN_FILES = "the state directory"


def disk_error(error: OSError, path: str = "") -> ZfsiloError | None:
    """Return the error for a file of zfsilo on a full or failing disk; None for another kind."""
    path = path or os.fspath(error.filename or OWN_FILES)
    if error.errno in NO_SPACE:
        return full_disk(path, error.strerror or "")
    if error.errno in BAD_DISK:
        return bad_disk(path, error.strerror or "")
    return None


def cancelled() -> Busy:
    """Return the failure of an operation that a caller cancelled."""
    return Busy("the operation was cancelled and rolled back", reason="CANCELLED")


def full_disk(path: str, why: str) -> ResourceExhausted:
    """Return the error for a file that finds no space."""
    return ResourceExhausted(
        f"cannot write {path}: {why}; free space on its filesystem (df -h), and retry",
        reason="DISK_FULL",
        path=path,
    )


def bad_disk(path: str, why: str) -> Unavailable:
    """Return the error for a file on a disk that fails or is read-only."""
    return Unavailable(
        f"cannot use {path}: {why}; check its filesystem (findmnt, journalctl -k), and retry",
        reason="DISK_FAILED",
        path=path,
    )


def _tree(root: type[ZfsiloError]) -> list[type[ZfsiloError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


BY_NAME = {kind.__name__: kind for kind in _tree(ZfsiloError)}


def revive(name: str, message: str, reason: str, facts: dict[str, str]) -> ZfsiloError:
    """Return the error that a worker or a server reported by name."""
    return BY_NAME.get(name, Internal)(message, reason=reason, **facts)

"""Every error of zfsilo, with the one table that the front ends translate by.

    ZfsiloError
      InvalidArgument       the request itself is wrong
      NotFound              no such volume, host, operation
      AlreadyExists         the name is taken, or the same thing exists with other parameters
      FailedPrecondition    right request, wrong state
        Conflict            something of that name is on the host, and it is not ours
      PermissionDenied      this identity may not do that
      Unauthenticated       no identity at all
      ResourceExhausted     no room: pool, store, limit
      Busy                  claimed by an operation, or still in use
      Unavailable           it cannot be known or reached now; nothing was moved
      DeadlineExceeded      still running; the operation goes on
      Internal              a defect
        CommandFailed       a tool failed in a way that has no name of its own
        StoreCorrupt        the store does not read back

The message is one sentence for a person and names the thing and, where there is one, the remedy.
`facts` are the same for a program; both pass through the store and all front ends unchanged.
"""

from __future__ import annotations


class ZfsiloError(Exception):
    """An error a caller may see: `message` for a person, `reason` and `facts` for a program."""

    code = "INTERNAL"
    reason = ""

    def __init__(self, message: str, *, reason: str = "", **facts: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason or _upper_snake(type(self).__name__)
        self.facts = facts

    @property
    def name(self) -> str:
        """The error's name on D-Bus, below `org.zfsilo1.Error.`."""
        return type(self).__name__


class InvalidArgument(ZfsiloError):
    """The request itself is wrong, whatever the state."""

    code = "INVALID_ARGUMENT"


class NotFound(ZfsiloError):
    """There is no such thing."""

    code = "NOT_FOUND"


class AlreadyExists(ZfsiloError):
    """The name is taken, or the thing exists with other parameters."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(ZfsiloError):
    """The request is right, the state is not."""

    code = "FAILED_PRECONDITION"


class Conflict(FailedPrecondition):
    """Something of that name exists on the host and is not ours; it is never touched."""


class PermissionDenied(ZfsiloError):
    """This identity may not do that."""

    code = "PERMISSION_DENIED"


class Unauthenticated(ZfsiloError):
    """The caller showed no identity that is known here."""

    code = "UNAUTHENTICATED"


class ResourceExhausted(ZfsiloError):
    """No room is left: in the pool, in the store, below a limit."""

    code = "RESOURCE_EXHAUSTED"


class Busy(ZfsiloError):
    """Claimed by a running operation, or in use by something else."""

    code = "ABORTED"


class Unavailable(ZfsiloError):
    """It cannot be known or reached now; never to be read as "absent"."""

    code = "UNAVAILABLE"


class DeadlineExceeded(ZfsiloError):
    """The caller's time is up; the operation goes on."""

    code = "DEADLINE_EXCEEDED"


class Internal(ZfsiloError):
    """A defect of zfsilo; the journal has the traceback."""

    code = "INTERNAL"


class CommandFailed(Internal):
    """A tool failed in a way that has no name of its own."""


class StoreCorrupt(Internal):
    """The store does not read back as what we write."""


def _upper_snake(name: str) -> str:
    return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()


def _tree(root: type[ZfsiloError]) -> list[type[ZfsiloError]]:
    return [root, *(each for child in root.__subclasses__() for each in _tree(child))]


BY_NAME = {each.__name__: each for each in _tree(ZfsiloError)}


def revive(name: str, message: str, reason: str, facts: dict[str, str]) -> ZfsiloError:
    """Make the error again that a worker or a server reported by name."""
    return BY_NAME.get(name, Internal)(message, reason=reason, **facts)

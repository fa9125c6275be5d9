"""Enumerations of the model and their numbers in protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

from zfsilo.v1 import operation_pb2, volume_pb2

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.words import (
    STATES,
    AccessMode,
    ActionStatus,
    ConnectionView,
    FilesystemState,
    Mode,
    OperationState,
    Restore,
    Transport,
)
from zfsilod.requests.deletion import Dependents

if TYPE_CHECKING:
    from collections.abc import Sequence

N = TypeVar("N", bound=str)


class WireEnum(Generic[N]):
    """The names of a model enumeration and the numbers of its protobuf enum.

    The value of name N in the enum of prefix P is P_N; the value 0 is P_UNSPECIFIED.
    """

    def __init__(self, noun: str, names: Sequence[N], wrapper: Any) -> None:
        prefix = str(wrapper.Name(0)).removesuffix("UNSPECIFIED")
        self._noun = noun
        self._numbers: dict[str, int] = {name: wrapper.Value(prefix + name) for name in names}
        self._names: dict[int, N] = {self._numbers[name]: name for name in names}

    def number(self, name: str) -> Any:
        """Return the number of a name; protobuf's stubs have a type of its own for each enum."""
        return self._numbers[name]

    def name_or_empty(self, number: int) -> N | Literal[""]:
        """Return the name of a number; "" of 0. Raises InvalidArgument."""
        return self.name(number) if number else ""

    def name(self, number: int, default: N | None = None) -> N:
        """Return the name of a number; 0 is the default. Raises InvalidArgument."""
        if number == 0 and default is not None:
            return default
        try:
            return self._names[number]
        except KeyError:
            raise InvalidArgument(
                f"invalid {self._noun} {number}: expected one of {', '.join(self._numbers)}",
                reason="BAD_ENUM",
            ) from None


MODES: WireEnum[Mode] = WireEnum("mode", get_args(Mode), volume_pb2.Mode)
ACCESS_MODES: WireEnum[AccessMode] = WireEnum(
    "access mode", get_args(AccessMode), volume_pb2.AccessMode
)
TRANSPORTS: WireEnum[Transport] = WireEnum("transport", get_args(Transport), volume_pb2.Transport)
RESTORES: WireEnum[Restore] = WireEnum("restore", get_args(Restore), volume_pb2.Restore)
FILESYSTEM_STATES: WireEnum[FilesystemState] = WireEnum(
    "filesystem state", get_args(FilesystemState), volume_pb2.FilesystemState
)
CONNECTION_VIEWS: WireEnum[ConnectionView] = WireEnum(
    "connection view", get_args(ConnectionView), volume_pb2.ConnectionView
)
DEPENDENTS: WireEnum[Dependents] = WireEnum(
    "dependents", get_args(Dependents), volume_pb2.Dependents
)
VOLUME_STATES: WireEnum[str] = WireEnum("state", STATES, volume_pb2.State)
OPERATION_STATES: WireEnum[OperationState] = WireEnum(
    "operation state", get_args(OperationState), operation_pb2.OperationState
)
ACTION_STATUSES: WireEnum[ActionStatus] = WireEnum(
    "action status", get_args(ActionStatus), operation_pb2.ActionStatus
)

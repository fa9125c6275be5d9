"""What callers see of errors: one class, and one table from zfsilod's codes to those of CSI."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

Code = grpc.StatusCode
DETAILS = "grpc-status-details-bin"
DOMAIN = "zfsilo.org"
CUT_OFF = "CUT_OFF"  # the reason when no zfsilod answered: the connection ended, or there is none

CODES = {  # what the CSI specification has another code for
    Code.DEADLINE_EXCEEDED: Code.ABORTED,  # the operation goes on; the next call joins it
    Code.CANCELLED: Code.ABORTED,
}
REASONS = {  # where zfsilod's reason says more than its code
    "BAD_ID": Code.NOT_FOUND,  # ids are never judged by their syntax
    "BAD_NAME": Code.NOT_FOUND,
    "BAD_SIZE": Code.OUT_OF_RANGE,
    "SHRINK": Code.OUT_OF_RANGE,
    "SMALLER_THAN_SOURCE": Code.OUT_OF_RANGE,
    "BAD_PAGE_TOKEN": Code.ABORTED,
}


class CsiError(Exception):
    """An error as the caller sees it. `reason` is zfsilod's or CUT_OFF, for ourselves."""

    def __init__(self, code: grpc.StatusCode, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason


def invalid(message: str) -> CsiError:
    """Return the error for a request that is wrong in itself."""
    return CsiError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> CsiError:
    """Return the error for a volume, snapshot or node that nobody knows."""
    return CsiError(Code.NOT_FOUND, message)


@contextmanager
def absent_is_well() -> Iterator[None]:
    """Take what is gone already for removed: deletions are asked for again and again."""
    try:
        yield
    except CsiError as error:
        if error.code != Code.NOT_FOUND:
            raise


def need(value: Any, what: str) -> Any:
    """Return a field that must be set, else raise INVALID_ARGUMENT."""
    if not value:
        raise invalid(f"{what} is missing")
    return value


def translated(error: grpc.aio.AioRpcError, who: str) -> CsiError:
    """Return what the caller shall see of an error that a zfsilod, or the way to it, answered."""
    info = _info(error.trailing_metadata() or ())
    message = error.details() or error.code().name
    if info is None:
        return _of_transport(error.code(), message, who)
    code = REASONS.get(info.reason) or CODES.get(error.code(), error.code())
    return CsiError(code, f"{who}: {message}", reason=info.reason)


def _of_transport(code: grpc.StatusCode, message: str, who: str) -> CsiError:
    """Judge what grpc says when no zfsilod answered, or one that does not know the method."""
    if code == Code.UNIMPLEMENTED:
        return CsiError(code, f"{who} is too old for this: {message}")
    if code == Code.DEADLINE_EXCEEDED:
        return CsiError(Code.UNAVAILABLE, f"{who} did not answer in time")
    return CsiError(Code.UNAVAILABLE, f"{who} cannot be reached: {message}", reason=CUT_OFF)


def _info(metadata: Any) -> ErrorInfo | None:
    for name, value in metadata:
        if name == DETAILS:
            for detail in Status.FromString(value).details:
                info = ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return info
    return None

"""Errors of CSI calls: the exception, and the translation of zfsilod's error codes to CSI's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

Code = grpc.StatusCode
DETAILS = "grpc-status-details-bin"
DOMAIN = "zfsilo.org"
CUT_OFF = "CUT_OFF"  # reason of an error without a reply: the connection broke or never existed

CODES = {  # codes that the CSI specification replaces by others
    Code.DEADLINE_EXCEEDED: Code.ABORTED,  # the operation goes on, and a repeated call joins it
    Code.CANCELLED: Code.ABORTED,
}
REASONS = {  # reasons of zfsilod that need another code than zfsilod's own
    "BAD_ID": Code.NOT_FOUND,  # the CSI specification defines no syntax for ids
    "BAD_NAME": Code.NOT_FOUND,
    "BAD_OFFSET": Code.OUT_OF_RANGE,
    "BAD_SIZE": Code.OUT_OF_RANGE,
    "SHRINK": Code.OUT_OF_RANGE,
    "SMALLER_THAN_SOURCE": Code.OUT_OF_RANGE,
    "BAD_PAGE_TOKEN": Code.ABORTED,
    "TOO_MANY_CALLS": Code.UNAVAILABLE,  # RESOURCE_EXHAUSTED stands for a lack of space
}


class CsiError(Exception):
    """An error of a CSI call. `reason` is zfsilod's or CUT_OFF, and is not sent to the caller."""

    def __init__(self, code: grpc.StatusCode, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason


def invalid(message: str) -> CsiError:
    """Return an INVALID_ARGUMENT error."""
    return CsiError(Code.INVALID_ARGUMENT, message)


def nonsense(daemon: str, why: str) -> CsiError:
    """Return the error for a reply that no zfsilod of this version gives."""
    return CsiError(Code.INTERNAL, f"{daemon} replied with nonsense: {why}; check its version")


def not_found(message: str) -> CsiError:
    """Return a NOT_FOUND error."""
    return CsiError(Code.NOT_FOUND, message)


def need(value: Any, field: str) -> Any:
    """Return the value of a required field, else raise INVALID_ARGUMENT."""
    if not value:
        raise invalid(f"{field} is missing from the request")
    return value


@contextmanager
def ignore_not_found() -> Iterator[None]:
    """Suppress NOT_FOUND: the CSI specification demands that repeated deletions succeed."""
    try:
        yield
    except CsiError as error:
        if error.code != Code.NOT_FOUND:
            raise


def translated(error: grpc.aio.AioRpcError, daemon: str) -> CsiError:
    """Return the CSI error for an error of a zfsilod or of the connection to it."""
    info = _error_info(error.trailing_metadata() or ())
    code, message = error.code(), error.details() or error.code().name
    if info is not None:
        csi_code = REASONS.get(info.reason) or CODES.get(code, code)
        return CsiError(csi_code, f"{daemon}: {message}", reason=info.reason)
    # Without ErrorInfo the error is grpc's own: no zfsilod replied, or it lacks the method.
    if code == Code.UNIMPLEMENTED:
        return CsiError(code, f"{daemon} does not have this method, upgrade zfsilod: {message}")
    if code == Code.DEADLINE_EXCEEDED:
        return CsiError(Code.UNAVAILABLE, f"{daemon} did not reply before the deadline; retry")
    return CsiError(
        Code.UNAVAILABLE,
        f"{daemon} cannot be reached, check that zfsilod runs there: {message}",
        reason=CUT_OFF,
    )


def _error_info(metadata: Any) -> ErrorInfo | None:
    for name, value in metadata:
        if name == DETAILS:
            try:
                return _info_of(Status.FromString(value))
            except DecodeError:  # not from a zfsilod
                return None
    return None


def _info_of(status: Status) -> ErrorInfo | None:
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None

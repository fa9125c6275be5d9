"""Errors of gRPC calls and of operations, as ZfsiloError."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import BY_NAME, Internal, ZfsiloError

if TYPE_CHECKING:
    import grpc


def error_of(error: grpc.RpcError, where: str, *, local: bool) -> ZfsiloError:
    """Return the error of a failed call to the daemon `where`."""
    from zfsilod.wire.status import connection_error, from_status, is_ours

    failure = from_status(error)
    if is_ours(error):
        return failure
    # No zfsilod sent it: the connection failed.
    status: Any = error  # grpc's types do not say that it is a Call
    code = status.code().name
    if code == "UNAVAILABLE" and not local:
        return connection_error(where, failure.message)
    sentences = {
        "UNAVAILABLE": f"{where} does not answer: {failure.message}",
        "DEADLINE_EXCEEDED": f"{where} did not answer in time",
        "UNIMPLEMENTED": f"{where} does not support this request; it is older than this zfsiloctl",
    }
    reason = "NO_DAEMON" if code == "UNAVAILABLE" and local else code
    return type(failure)(sentences.get(code, f"{where}: {failure.message}"), reason=reason)


def failure_of(operation: Any) -> ZfsiloError | None:
    """Return the error with which an operation failed, or None."""
    if not operation.HasField("error"):
        return None
    error = operation.error
    facts = {name: error.facts[name] for name in error.facts}
    return BY_NAME.get(error.name, Internal)(error.message, reason=error.reason, **facts)

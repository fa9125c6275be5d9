"""Errors of calls, of connections and of operations, as ZfsiloError."""

from __future__ import annotations

from zfsilod.model.errors import (
    BY_NAME,
    DeadlineExceeded,
    Internal,
    Unauthenticated,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

DOMAIN = "zfsilo.org"
CODES = (  # google.rpc.Code
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
BY_CODE = {kind.code: kind for kind in ZfsiloError.__subclasses__()}
PARAMETERS = ("self", "message", "reason")  # of ZfsiloError: no facts have these names
NOT_KNOWN = ("NO_URL", "BAD_METHOD")


def error_of(status: Any, where: str) -> ZfsiloError:
    """Return the error that the daemon `where` sent as JSON of google.rpc.Status."""
    number = status.get("code")
    code = CODES[number] if isinstance(number, int) and 0 <= number < len(CODES) else "UNKNOWN"
    kind = BY_CODE.get(code, Internal)
    message = str(status.get("message") or code)
    info = next((one for one in status.get("details", ()) if one.get("domain") == DOMAIN), None)
    if info is None:
        return kind(f"{where}: {message}", reason=code)
    if info["reason"] in NOT_KNOWN:
        return Internal(f"{where} does not support this request; it is older than this zfsiloctl")
    facts = {name: str(value) for name, value in info.get("metadata", {}).items()}
    facts = {name: value for name, value in facts.items() if name not in PARAMETERS}
    return kind(message, reason=str(info["reason"]), **facts)


def connection_error(error: OSError, where: str, *, local: bool) -> ZfsiloError:
    """Return the error of a connection that failed: no zfsilod answered.

    A problem of a certificate is Unauthenticated: waiting does not solve it.
    """
    words = error.strerror or str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{where} did not answer in time", reason="DEADLINE_EXCEEDED")
    if local:
        return Unavailable(f"{where} does not answer: {words}", reason="NO_DAEMON")
    return _remote_error(error, where, words)


def _remote_error(error: OSError, where: str, words: str) -> ZfsiloError:
    import ssl
    from socket import gaierror

    if isinstance(error, ssl.SSLCertVerificationError):
        return Unauthenticated(
            f"{where} has a certificate that its known authority did not issue for it: "
            f"{error.verify_message or words}",
            reason="SERVER_CERTIFICATE",
        )
    if isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason):
        return Unauthenticated(
            f"{where} refused this host's certificate (expired, revoked, or of an unknown "
            f"authority): {error.reason}",
            reason="CERTIFICATE_REFUSED",
        )
    if isinstance(error, gaierror):
        return Unavailable(
            f"the name of {where} cannot be resolved: {words}", reason="NAME_NOT_RESOLVED"
        )
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(
            f"{where} did not answer: nothing listens on its port: {words}",
            reason="CONNECTION_REFUSED",
        )
    return Unavailable(f"{where} did not answer: {words}", reason="SERVER_UNAVAILABLE")


def failure_of(operation: Any) -> ZfsiloError | None:
    """Return the error with which an operation failed, or None."""
    if not operation.HasField("error"):
        return None
    error = operation.error
    return BY_NAME.get(error.name, Internal)(error.message, reason=error.reason, **error.facts)

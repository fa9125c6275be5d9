"""Conversion of errors to gRPC status and back: code, message, and google.rpc.ErrorInfo."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from zfsilod.model.errors import Internal, Unauthenticated, Unavailable, ZfsiloError, show

if TYPE_CHECKING:
    from collections.abc import Mapping

DOMAIN = "zfsilo.org"
DETAILS = "grpc-status-details-bin"
INFO_TYPE = "type.googleapis.com/google.rpc.ErrorInfo"
MAX_FACT_CHARACTERS = 1024  # the default limit of a client is 8 KiB of metadata
MAX_FACTS_CHARACTERS = 4096
MAX_MESSAGE_CHARACTERS = 1024
REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")  # google/rpc/error_details.proto
FACT = re.compile(r"[a-z][A-Za-z0-9_-]{0,63}")

# Parameters of ZfsiloError: facts of these names, which a server might send, are dropped.
PARAMETERS = ("self", "message", "reason")
# The direct subclasses: the most general class of each code.
BY_CODE: dict[str, type[ZfsiloError]] = {kind.code: kind for kind in ZfsiloError.__subclasses__()}
BY_NUMBER = {grpc.StatusCode[code].value[0]: kind for code, kind in BY_CODE.items()}

# Words of the gRPC library (C core) and of BoringSSL; the kind of error, its reason and sentence.
CONNECTION_ERRORS: tuple[tuple[tuple[str, ...], type[ZfsiloError], str, str], ...] = (
    (
        ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed"),
        Unauthenticated,
        "SERVER_CERTIFICATE",
        "{} has a certificate that its known authority did not issue for it",
    ),
    (
        ("Unwrap failed", "_ALERT_"),  # the server has verified this host's after the handshake
        Unauthenticated,
        "CERTIFICATE_REFUSED",
        "{} refused this host's certificate (expired, revoked, or of an unknown authority)",
    ),
    (
        ("errors resolving", "lookup failed", "DNS resolution failed", "Domain name not found"),
        Unavailable,
        "NAME_NOT_RESOLVED",
        "the name of {} cannot be resolved",
    ),
    (
        ("Connection refused",),
        Unavailable,
        "CONNECTION_REFUSED",
        "{} did not answer: nothing listens on its port",
    ),
)


def to_status(error: ZfsiloError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Return code, message and trailing metadata of an error."""
    code = grpc.StatusCode[error.code]
    message = error.message[:MAX_MESSAGE_CHARACTERS]
    status = Status(code=code.value[0], message=message)
    status.details.add().Pack(
        ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_short(error.facts))
    )
    return code, message, ((DETAILS, status.SerializeToString()),)


def as_json(error: ZfsiloError) -> dict[str, Any]:
    """Return an error as the JSON of google.rpc.Status."""
    info = {"@type": INFO_TYPE, "reason": error.reason, "domain": DOMAIN}
    return {
        "code": grpc.StatusCode[error.code].value[0],
        "message": error.message[:MAX_MESSAGE_CHARACTERS],
        "details": [info | {"metadata": _short(error.facts)}],
    }


def from_json(text: str, http_status: int) -> ZfsiloError:
    """Return the error that a server sent as the JSON of google.rpc.Status."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):  # no JSON; or thousands of brackets
        told = None
    match told:
        case {
            "code": int(code),
            "message": str(message),
            "details": [{"reason": str(reason), "metadata": dict(facts)}, *_],
        } if code in BY_NUMBER:
            texts = {name: value for name, value in facts.items() if isinstance(value, str)}
            return _told(BY_NUMBER[code], message, reason, texts)
    return Unavailable(
        f"the server answered with the status {http_status}", reason="SERVER_UNAVAILABLE"
    )


def from_status(error: grpc.RpcError) -> ZfsiloError:
    """Return the ZfsiloError that a server raised, from a blocking or an asyncio call."""
    answer: Any = error  # it is a grpc.Call too, which its type does not say
    kind = BY_CODE.get(answer.code().name, Internal)
    info = _info(answer.trailing_metadata() or ())
    message = answer.details() or answer.code().name
    if info is None:
        return kind(message)
    return _told(kind, message, info.reason, info.metadata)


def _told(
    kind: type[ZfsiloError], message: str, reason: str, facts: Mapping[str, str]
) -> ZfsiloError:
    """Return an error of a server, with the bounds of an own one: it is stored and shown here."""
    kept = {
        name: value
        for name, value in _short(facts).items()
        if FACT.fullmatch(name) and name not in PARAMETERS
    }
    return kind(bounded_message(message), reason=checked_reason(reason), **kept)


def bounded_message(text: str) -> str:
    """Return a sentence of a server without control characters, and not too long."""
    return show(text[:MAX_MESSAGE_CHARACTERS], lines=True)[:MAX_MESSAGE_CHARACTERS]


def checked_reason(text: str) -> str:
    """Return a reason of a server, also one of a later version; "" for what is none."""
    return text if REASON.fullmatch(text) else ""


def is_ours(error: grpc.RpcError) -> bool:
    """Tell whether zfsilod sent this error, not the gRPC library or a proxy."""
    answer: Any = error
    return _info(answer.trailing_metadata() or ()) is not None


def connection_error(where: str, details: str, **facts: str) -> ZfsiloError:
    """Return the error of a call that reached no zfsilod: by the gRPC library's own words.

    A problem of a certificate is Unauthenticated: waiting does not solve it.
    """
    for parts, kind, reason, sentence in CONNECTION_ERRORS:
        if any(part in details for part in parts):
            return kind(f"{sentence.format(where)}: {details}", reason=reason, **facts)
    return Unavailable(f"{where} did not answer: {details}", reason="SERVER_UNAVAILABLE", **facts)


def _short(facts: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    left = MAX_FACTS_CHARACTERS
    for name, value in facts.items():
        text = str(value)[:MAX_FACT_CHARACTERS]
        left -= len(name) + len(text)
        if left < 0:
            break
        kept[name] = text
    return kept


def _info(metadata: Any) -> ErrorInfo | None:
    for name, value in metadata:
        if name == DETAILS:
            try:
                return _info_of(Status.FromString(value))
            except DecodeError:  # not from a zfsilod, or from a hostile one
                return None
    return None


def _info_of(status: Status) -> ErrorInfo | None:
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None

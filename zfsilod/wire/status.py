"""Conversion of errors to gRPC status and back: code, message, and google.rpc.ErrorInfo."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from zfsilod.model.errors import Internal, ZfsiloError

DOMAIN = "zfsilo.org"
DETAILS = "grpc-status-details-bin"
MAX_FACT_CHARACTERS = 1024  # the default limit of a client is 8 KiB of metadata
MAX_FACTS_CHARACTERS = 4096
MAX_MESSAGE_CHARACTERS = 1024

# Parameters of ZfsiloError: facts of these names, which a server might send, are dropped.
PARAMETERS = ("self", "message", "reason")
# The direct subclasses: the most general class of each code.
BY_CODE: dict[str, type[ZfsiloError]] = {kind.code: kind for kind in ZfsiloError.__subclasses__()}


def to_status(error: ZfsiloError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Return code, message and trailing metadata of an error."""
    code = grpc.StatusCode[error.code]
    message = error.message[:MAX_MESSAGE_CHARACTERS]
    status = Status(code=code.value[0], message=message)
    status.details.add().Pack(
        ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_short(error.facts))
    )
    return code, message, ((DETAILS, status.SerializeToString()),)


def from_status(error: grpc.RpcError) -> ZfsiloError:
    """Return the ZfsiloError that a server raised, from a blocking or an asyncio call."""
    answer: Any = error  # it is a grpc.Call too, which its type does not say
    kind = BY_CODE.get(answer.code().name, Internal)
    info = _info(answer.trailing_metadata() or ())
    message = answer.details() or answer.code().name
    if info is None:
        return kind(message)
    facts = {name: value for name, value in info.metadata.items() if name not in PARAMETERS}
    return kind(message, reason=info.reason, **facts)


def is_ours(error: grpc.RpcError) -> bool:
    """Tell whether zfsilod sent this error, not the gRPC library or a proxy."""
    answer: Any = error
    return _info(answer.trailing_metadata() or ()) is not None


def _short(facts: dict[str, str]) -> dict[str, str]:
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
            status = Status.FromString(value)
            for detail in status.details:
                info = ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return info
    return None

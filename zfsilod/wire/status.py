"""Errors on the wire: a code, a message, and google.rpc.ErrorInfo with reason and facts."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from zfsilod.model.errors import Internal, ZfsiloError

DOMAIN = "zfsilo.org"
DETAILS = "grpc-status-details-bin"
MAX_FACT_CHARACTERS = 1024  # a client takes 8 KiB of metadata
MAX_FACTS_CHARACTERS = 4096
MAX_MESSAGE_CHARACTERS = 1024

PARAMETERS = ("self", "message", "reason")  # of ZfsiloError: no names for facts of a strange server
# One class for each code, the most general one.
BY_CODE: dict[str, type[ZfsiloError]] = {each.code: each for each in ZfsiloError.__subclasses__()}


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
    """Make the error again that a server answered with, from a sync or an aio call."""
    answer: Any = error  # grpc's types do not say that it is a Call
    kind = BY_CODE.get(answer.code().name, Internal)
    info = _info(answer.trailing_metadata() or ())
    message = answer.details() or answer.code().name
    if info is None:
        return kind(message)
    facts = {name: value for name, value in info.metadata.items() if name not in PARAMETERS}
    return kind(message, reason=info.reason, **facts)


def is_ours(error: grpc.RpcError) -> bool:
    """Tell whether a zfsilod answered this, and not grpc or something on the way."""
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

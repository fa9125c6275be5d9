"""The answers of a server, checked once: types, bounds, and names that the server may give.

A server is another machine, which may lie. Its answers become node records, sessions and arguments
of tools on this host.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from zfsilod.model.chap import Chap
from zfsilod.model.connection import Connection
from zfsilod.model.errors import FailedPrecondition, InvalidArgument
from zfsilod.model.host_facts import FILESYSTEMS
from zfsilod.model.names import (
    check_portal,
    iqn_form,
    is_guid,
    is_portal,
    is_target_name,
    is_uid,
    is_uuid,
)
from zfsilod.model.replica import MAX_TERM, ReplicaFacts, is_token
from zfsilod.model.validation import ID, MAX_BYTES
from zfsilod.wire import convert, enums, status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilo.v1 import volume_pb2

MAX_PORTALS = 16
MAX_COUNT = 1 << 62
UID = re.compile(r"[0-9a-f]{32}")
CHAP_TEXT = re.compile(r"[!-~]{1,255}")  # without spaces and line ends: host/node_records.py
OPERATION_ID = re.compile(r"[0-9a-z]{0,64}")


def check_connection(
    server: str, volume: str, answer: volume_pb2.FetchConnectionResponse, prefix: str
) -> Connection:
    """Return a connection as a server reports it; its portals may still be wildcards.

    `prefix`: of all targets of the server, if this host knows it. Raises FailedPrecondition
    (BAD_ANSWER).
    """
    _check_names(server, volume, answer, prefix)
    for what, valid in (
        ("portals", 0 < len(answer.portals) <= MAX_PORTALS and all(map(is_portal, answer.portals))),
        ("size", 0 < answer.size_bytes <= MAX_BYTES),
        ("epoch", 0 < answer.epoch <= MAX_COUNT),
        ("rotation", 0 <= answer.rotation <= MAX_COUNT),
    ):
        if not valid:
            _refuse(server, volume, f"its {what} is not valid")
    _check_filesystem(server, volume, answer.filesystem)
    try:
        return Connection(
            volume=volume,
            target=answer.target,
            portals=tuple(dict.fromkeys(map(check_portal, answer.portals))),
            serial=answer.serial,
            size_bytes=answer.size_bytes,
            mode=enums.MODES.name(answer.mode),
            epoch=answer.epoch,
            rotation=answer.rotation,
            readonly=answer.readonly,
            filesystem=convert.read_filesystem(answer.filesystem),
            by_controller=answer.by_controller,
            tls=answer.tls,
        )
    except InvalidArgument as error:
        _refuse(server, volume, error.message)


def check_portals(server: str, portals: Sequence[str]) -> tuple[str, ...]:
    """Return the portals that a server names. Raises FailedPrecondition (BAD_ANSWER)."""
    if len(portals) > MAX_PORTALS or not all(map(is_portal, portals)):
        raise FailedPrecondition(
            f"server {server} names portals that are not valid",
            reason="BAD_ANSWER",
            server=server,
        )
    return tuple(dict.fromkeys(map(check_portal, portals)))


def check_chap(server: str, volume: str, chap: volume_pb2.Chap, *, tls: bool) -> Chap:
    """Return the secrets of a connection. Raises FailedPrecondition, which never quotes them."""
    values = (chap.username, chap.password, chap.mutual_username, chap.mutual_password)
    if not all(map(CHAP_TEXT.fullmatch, values)):
        _refuse(server, volume, "its CHAP names or secrets are not valid")
    if bool(chap.tls_key) != tls or (tls and not CHAP_TEXT.fullmatch(chap.tls_key)):
        _refuse(server, volume, "its key of TLS is missing, not valid, or not expected")
    return Chap(
        username=chap.username,
        password=chap.password,
        mutual_username=chap.mutual_username,
        mutual_password=chap.mutual_password,
        tls_key=chap.tls_key,
    )


def check_replica(server: str, volume: str, answer: volume_pb2.Replica) -> ReplicaFacts:
    """Return what a peer says that it has of a volume. Raises FailedPrecondition (BAD_ANSWER).

    The token becomes an argument of processes: what it continues is checked where it is used.
    """
    if answer.snapshot_guid and not is_guid(answer.snapshot_guid):
        _refuse(server, volume, "the guid of its snapshot is not a number of 64 bits")
    if answer.continuation and not is_token(answer.continuation):
        _refuse(server, volume, "its resume token is not one of zfs receive")
    if not 0 <= answer.term <= MAX_TERM or (answer.term_store and not is_uid(answer.term_store)):
        _refuse(server, volume, "the term of its primary is not valid")
    return ReplicaFacts(
        is_primary=answer.primary,
        term=answer.term,
        term_store=answer.term_store,
        exists=True,
        guid=answer.snapshot_guid,
        token=answer.continuation,
        problem=status.bounded_message(answer.problem),
        reason=status.checked_reason(answer.problem_reason),
    )


def _check_names(
    server: str, volume: str, answer: volume_pb2.FetchConnectionResponse, prefix: str
) -> None:
    target = answer.target
    if not UID.fullmatch(answer.serial):
        _refuse(server, volume, f"its serial number {answer.serial[:64]!r} is not a uid")
    if not is_target_name(target) or not target.endswith(f":{answer.serial}"):
        _refuse(server, volume, f"its target {target[:223]!r} does not end with the volume's uid")
    if prefix and iqn_form(target.lower()) != f"{prefix}:{answer.serial}".lower():
        _refuse(server, volume, f"its target {target} does not have the prefix {prefix}")


def _check_filesystem(server: str, volume: str, filesystem: volume_pb2.Filesystem) -> None:
    for valid in (
        filesystem.type in ("", *FILESYSTEMS),
        not filesystem.uuid or is_uuid(filesystem.uuid),
        not filesystem.origin or is_uuid(filesystem.origin),
        OPERATION_ID.fullmatch(filesystem.operation),
        not filesystem.host or ID.fullmatch(filesystem.host),
    ):
        if not valid:
            _refuse(server, volume, "its filesystem is not valid")


def _refuse(server: str, volume: str, why: str) -> NoReturn:
    raise FailedPrecondition(
        f"server {server} describes {volume} wrongly: {why}; nothing was changed on this host",
        reason="BAD_ANSWER",
        server=server,
        volume=volume,
    )

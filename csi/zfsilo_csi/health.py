"""Health of volumes: the problems that zfsilod reports, as the statuses and reasons of CSI."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from csi.v1 import csi_pb2 as csi

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zfsilo.v1 import service_pb2, volume_pb2

MAX_MESSAGE_BYTES = 1024  # of all entries of a volume: a page has many volumes
MAX_ENTRIES = 8
REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
OTHER = "OTHER_PROBLEM"  # a zfsilod of an earlier version reports no reasons
STAGE_FAILED = "STAGE_FAILED"  # NodeStageVolume failed for a reason that is not in STATUSES

DEGRADED, INACCESSIBLE, DATA_LOSS = csi.DEGRADED, csi.INACCESSIBLE, csi.DATA_LOSS
# Status and reason in CSI of zfsilod's reasons. All others are DEGRADED, under their own name: a
# problem that cannot be judged must not make the orchestrator take the volume from its pods.
STATUSES: Mapping[str, tuple[csi.VolumeHealthErrorType, str]] = {
    "LOST": (DATA_LOSS, "ZvolMissing"),
    "NO_DATASET": (DATA_LOSS, "ZvolMissing"),
    "NO_ZVOL": (DATA_LOSS, "ZvolMissing"),
    "FILESYSTEM_LOST": (DATA_LOSS, "FilesystemMissing"),
    "CONFLICT": (INACCESSIBLE, "Conflict"),
    "OTHER_GUID": (INACCESSIBLE, "ZvolReplaced"),
    "NO_POOL": (INACCESSIBLE, "PoolNotImported"),
    "POOL_SUSPENDED": (INACCESSIBLE, "PoolSuspended"),
    "POOL_FAULTED": (INACCESSIBLE, "PoolFaulted"),
    "POOL_READONLY": (INACCESSIBLE, "PoolReadOnly"),
    "POOL_DEGRADED": (DEGRADED, "PoolDegraded"),
    "KEY_NOT_LOADED": (INACCESSIBLE, "KeyNotLoaded"),
    "KEY_LOST": (INACCESSIBLE, "KeyLost"),
    "KEY_MISMATCH": (INACCESSIBLE, "KeyMismatch"),
    "FENCED": (INACCESSIBLE, "Fenced"),
    "SESSION_LOST": (INACCESSIBLE, "SessionLost"),
    "PATH_LOST": (DEGRADED, "PathLost"),
    "ONE_PATH": (DEGRADED, "OnePath"),
    "NO_MULTIPATHD": (DEGRADED, "NoMultipathd"),
    "NOT_MOUNTED": (INACCESSIBLE, "NotMounted"),
    "FILESYSTEM_FAILS": (INACCESSIBLE, "FilesystemFails"),
    "FILESYSTEM_HANGS": (INACCESSIBLE, "FilesystemHangs"),
    "FILESYSTEM_ERRORS": (DEGRADED, "FilesystemErrors"),
    "UNKNOWN": (DEGRADED, "FactsUnknown"),
    STAGE_FAILED: (INACCESSIBLE, "StageFailed"),
}
# Problems of a pool, which all of its volumes have.
OF_POOL = frozenset(reason for reason in STATUSES if "POOL" in reason) | {"KEY_NOT_LOADED"}
# Problems of a client. A server that is its own client has them beside its other clients.
OF_CLIENT = frozenset(
    (
        "FENCED",
        "SESSION_LOST",
        "PATH_LOST",
        "ONE_PATH",
        "NO_MULTIPATHD",
        "NOT_MOUNTED",
        "FILESYSTEM_FAILS",
        "FILESYSTEM_HANGS",
        "FILESYSTEM_ERRORS",
    )
)


class Problem(NamedTuple):
    """A problem of a volume: one of zfsilod's reasons, and a sentence."""

    reason: str
    sentence: str


def problems_of(
    message: volume_pb2.Volume | volume_pb2.VolumeStats | service_pb2.Capacity,
) -> list[Problem]:
    """Return the problems in a reply of zfsilod."""
    sentences = list(message.conditions)
    reasons = message.condition_reasons[: len(sentences)]
    return [
        Problem(reason if REASON.fullmatch(reason) else OTHER, sentence)
        for reason, sentence in zip_longest(reasons, sentences, fillvalue="")
    ]


def volume_health(
    volume_id: str, problems: Iterable[Problem], *, of_node: bool = False
) -> csi.VolumeHealth:
    """Return the health of a volume: an entry for each status and reason, the worst first.

    Without `of_node`, the health is that for all nodes, so problems of one client are DEGRADED.
    """
    sentences: dict[tuple[csi.VolumeHealthErrorType, str], dict[str, None]] = {}
    for problem in problems:
        status, reason = STATUSES.get(problem.reason) or (DEGRADED, _camel_case(problem.reason))
        if problem.reason in OF_CLIENT and not of_node:
            status = DEGRADED
        sentences.setdefault((status, reason), {})[problem.sentence] = None
    worst_first = sorted(sentences, key=lambda key: -key[0])[:MAX_ENTRIES]
    share = MAX_MESSAGE_BYTES // max(1, len(worst_first))
    return csi.VolumeHealth(
        volume_id=volume_id,
        health_statuses=[
            csi.VolumeHealth.VolumeHealthEntry(
                status=status,
                reason=reason,
                message=cut("; ".join(sentences[status, reason]), share),
            )
            for status, reason in worst_first
        ],
    )


def cut(text: str, size: int) -> str:
    """Return the beginning of a text that has at most `size` bytes."""
    return text.encode()[:size].decode(errors="ignore")


def _camel_case(reason: str) -> str:
    """Return a reason of zfsilod in the form of CSI: NEEDS_REPAIR as NeedsRepair."""
    return "".join(word.capitalize() for word in reason.split("_"))

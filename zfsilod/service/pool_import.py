"""Restores the records of a whole pool, after a lost store or a move of the pool to another host.

Facts that only the lost store had are not restored; the result names them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zfsilod.model.errors import ZfsiloError
from zfsilod.requests.adoption import AdoptVolume
from zfsilod.requests.pool_import import AdoptSnapshots, AdoptTrashed
from zfsilod.requests.volumes import need_root
from zfsilod.service.pool_scan import unknown_snapshots, unknown_volumes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfsilod.model.identity import Caller
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Request
    from zfsilod.service.ports import Submitter

ADOPT_DEADLINE_S = 60.0
PUBLICATIONS_UNKNOWN = (
    "publications and hosts are not stored in the pool: let every client join again, or add it, "
    "and publish its volumes again; `zfsiloctl orphan list` shows what is still exported"
)
DELETIONS_UNKNOWN = (
    "the times of deletions are not stored in the pool: volumes in the trash stay for 30 days"
)
MEMBERS_UNKNOWN = (
    "an older zfsilo did not mark the members of snapshot groups {}: they have new ids"
)


class PoolImport(NamedTuple):
    """The result: adopted requests, by resource name why the others failed, and unknown facts."""

    adopted: list[Request[Any]]
    complaints: dict[str, str]
    unknown: list[str]


async def adopt_all(
    context: Context, submitter: Submitter, caller: Caller, *, validate_only: bool = False
) -> PoolImport:
    """Adopt everything below the root that has marks of zfsilo and no record."""
    need_root(context.settings)
    result = PoolImport([], {}, [])
    volumes = await unknown_volumes(context)
    if validate_only:
        await _plan(submitter, caller, volumes, result)
    else:
        await _adopt(submitter, caller, volumes, result)
    snapshots, nameless = await unknown_snapshots(context)
    result.complaints.update(nameless)
    if validate_only:
        result.adopted.extend(snapshots)  # their plans need the records of the volumes
    else:
        await _adopt(submitter, caller, snapshots, result)
    result.unknown.extend(_unknown(result.adopted))
    return result


async def _plan(
    submitter: Submitter, caller: Caller, requests: Sequence[Request[Any]], result: PoolImport
) -> None:
    """Fill the result with what would be adopted."""
    for request in requests:
        try:
            await submitter.plan(request, caller=caller)
        except ZfsiloError as error:
            result.complaints[request.subject] = error.message
        else:
            result.adopted.append(request)


async def _adopt(
    submitter: Submitter, caller: Caller, requests: Sequence[Request[Any]], result: PoolImport
) -> None:
    for request in requests:
        try:
            operation = await submitter.submit(request, caller=caller)
            await submitter.wait(operation.id, ADOPT_DEADLINE_S)
        except ZfsiloError as error:
            result.complaints[request.subject] = error.message
        else:
            result.adopted.append(request)


def _unknown(adopted: Sequence[Request[Any]]) -> Iterator[str]:
    """Yield a sentence for each kind of fact that the pool does not store."""
    if any(isinstance(request, AdoptVolume) for request in adopted):
        yield PUBLICATIONS_UNKNOWN
    if any(isinstance(request, AdoptTrashed) for request in adopted):
        yield DELETIONS_UNKNOWN
    groups = [one for one in adopted if isinstance(one, AdoptSnapshots) and one.is_group]
    unmarked = [group.id for group in groups if "members" not in dict(group.refs[0].marks)]
    if unmarked:
        yield MEMBERS_UNKNOWN.format(", ".join(unmarked))

"""Lists the zvols, and the snapshots of zfsilo, that are in the pool without a record."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.engine.steps.snapshot import Clone, SnapshotSet
from zfsilod.model.errors import FailedPrecondition, InvalidArgument
from zfsilod.model.names import check_dataset
from zfsilod.model.record import Record, pairs
from zfsilod.model.records import Snapshot
from zfsilod.model.validation import check_id
from zfsilod.model.zfs_properties import check_properties
from zfsilod.requests.adoption import AdoptVolume
from zfsilod.requests.context import INVENTORY_DEADLINE_S
from zfsilod.requests.deletion import FOLDER
from zfsilod.requests.pool_import import AdoptSnapshots, AdoptTrashed, volumes_by_dataset
from zfsilod.requests.put_back import PutBackVolume, put_back_request
from zfsilod.requests.volumes import need_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import ListedZvol
    from zfsilod.model.records import Operation
    from zfsilod.requests.context import Context

UNFINISHED = "left by an unfinished clone: remove it with zfs destroy"


class ZvolToAdopt(Record):
    """The parameters of an adoption; the request for it depends on the zvol and the records."""

    dataset: str
    id: str = ""
    accept_copy: bool = False


async def find_zvol(
    context: Context, dataset: str, volume_id: str, *, accept_copy: bool = False
) -> AdoptVolume | PutBackVolume:
    """Return the request that adopts a zvol, as its marked id, else `volume_id`, else its name.

    For the zvol of a volume that is recorded it is the request that puts it back.
    """
    need_root(context.settings)
    if volume_id:
        check_id(volume_id, "volume id")
    zvols = await find_zvols(context, check_dataset(dataset), volume_id)
    if len(zvols) == 1 and zvols[0].zvol.dataset == dataset:
        with context.read() as txn:
            zvol = zvols[0].zvol
            known = put_back_request(txn, zvol, volume_id, accept_copy=accept_copy)
        if known is not None:
            return known
    if f"/{FOLDER}/" in dataset:
        raise FailedPrecondition(
            f"{dataset} is in the trash: run zfsiloctl adopt --all, then volume undelete",
            reason="IN_TRASH",
            dataset=dataset,
        )
    if len(zvols) != 1 or zvols[0].zvol.dataset != dataset:
        raise FailedPrecondition(f"{dataset} is not a zvol", reason="NO_ZVOL", dataset=dataset)
    return zvols[0]


async def find_zvols(context: Context, dataset: str, volume_id: str) -> list[AdoptVolume]:
    """Return the requests that adopt the zvols below a dataset, marked by zfsilo or not."""
    question = partial(_list_zvols, context.machine, dataset, volume_id)
    return await context.look(question, timeout_s=INVENTORY_DEADLINE_S)


def _list_zvols(machine: HostAdapters, dataset: str, volume_id: str) -> list[AdoptVolume]:
    properties = machine.zfs.own_properties(dataset)
    zvols = machine.zfs.list_zvols(dataset)
    uids = {zvol.dataset: zvol.uid for zvol in zvols}
    return [
        AdoptVolume(
            id=_id(zvol, volume_id),
            zvol=zvol,
            origin=uids.get(zvol.origin, ""),
            properties=pairs(
                {
                    name: value
                    for name, value in properties.get(zvol.dataset, {}).items()
                    if _is_chosen(name, value)
                }
            ),
        )
        for zvol in zvols
    ]


def _is_chosen(name: str, value: str) -> bool:
    """Tell whether a property was chosen by a caller, and is not a default of zfsilo."""
    if plans.DURABLE.get(name) == value:
        return False
    try:
        check_properties(((name, value),), new=True)
    except InvalidArgument:
        return False
    return True


def _id(zvol: ListedZvol, wanted: str) -> str:
    own = dict(zvol.marks).get("id", "")
    if wanted and zvol.uid and own != wanted:
        raise InvalidArgument(
            f"{zvol.dataset} is volume {own} and keeps that id", reason="BAD_ID", volume=own
        )
    return own or wanted or zvol.dataset.rpartition("/")[2]


async def unknown_volumes(context: Context) -> list[AdoptVolume]:
    """Return the requests for volumes without a record, those in the trash last.

    Also for those whose record is older than the zvol.
    """
    with context.read() as txn:
        known = {volume.uid: volume for volume in volumes_by_dataset(txn).values()}
    unknown = [
        request
        for request in await find_zvols(context, context.settings.root, "")
        if request.zvol.uid
        and (request.zvol.uid not in known or request.is_newer_than(known[request.zvol.uid]))
    ]
    return [request for request in unknown if not _is_in_trash(request)] + [
        AdoptTrashed(
            id=request.id,
            zvol=request.zvol,
            properties=request.properties,
            origin=request.origin,
        )
        for request in unknown
        if _is_in_trash(request)
    ]


def _is_in_trash(request: AdoptVolume) -> bool:
    return f"/{FOLDER}/" in request.zvol.dataset


async def unknown_snapshots(context: Context) -> tuple[list[AdoptSnapshots], dict[str, str]]:
    """Return the requests for snapshots without a record, oldest first.

    Also the snapshots whose marks have no id, each with a complaint.
    """
    question = partial(context.machine.snapshots.list_snapshots, context.settings.root)
    listed = await context.look(question, timeout_s=INVENTORY_DEADLINE_S)
    with context.read() as txn:
        known = {snapshot.uid for snapshot in txn.scan(Snapshot)}
        known |= {uid for operation in txn.live() for uid in _snapshot_uids(operation)}
    requests: list[AdoptSnapshots] = []
    nameless: dict[str, str] = {}
    for uid, members in groupby(sorted(listed, key=lambda one: one.cut), lambda one: one.cut):
        refs = tuple(members)
        name = dict(refs[0].marks).get("snapshot", "")
        if uid not in known and name:
            requests.append(AdoptSnapshots(id=name, refs=refs))
        elif uid not in known:
            nameless |= {f"{ref.dataset}@zfsilo-{uid}": UNFINISHED for ref in refs}
    return sorted(requests, key=lambda request: request.refs[0].created_at), nameless


def _snapshot_uids(operation: Operation) -> Iterator[str]:
    """Yield the uids of the snapshots that an operation works on."""
    for action in operation.actions:
        if isinstance(action.step, Clone):
            yield action.step.snapshot_uid
        elif isinstance(action.step, SnapshotSet):
            yield action.step.uid

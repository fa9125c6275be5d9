"""Orphans, which are things on this host with marks of zfsilo and without a record; their removal.

They remain after the loss of a store, after an abandoned operation, or after manual changes. The
things that a running operation works on are not orphans, even before they are recorded.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.engine.configuration import DEFAULT_PREFIX
from zfsilod.engine.steps.access import NoAcl, NoReservations, NoSession
from zfsilod.engine.steps.export import NoExport, NoOtherPath
from zfsilod.engine.steps.mount import LazyUnmounted
from zfsilod.engine.steps.session import NoNode, SessionDropped
from zfsilod.engine.steps.users import DiskUnused, UsersNamed
from zfsilod.engine.steps.zfs import Zvol
from zfsilod.host.places import ANYWHERE
from zfsilod.host.transports import export_paths, sessions, target_adapter, targets
from zfsilod.model.errors import Busy, FailedPrecondition, InvalidArgument, NotFound, show
from zfsilod.model.host_facts import Disk, ExportPath, ListedZvol
from zfsilod.model.names import iqn_form, target_of
from zfsilod.model.record import Record
from zfsilod.model.records import Attachment, Publication, Trashed, Volume
from zfsilod.requests.adoption import all_volumes
from zfsilod.requests.request import Plan, Request, View

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.model.records import Action
    from zfsilod.model.settings import Settings
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

TARGET = re.compile(r"(.+):([0-9a-f]{32})")  # plans.target_name
BACKSTORE = re.compile(r"zfsilo-([0-9a-f]{32})")  # plans.backstore_name
MAX_NAMES = 1000


class Inventory(Record):
    """Everything on a host that carries marks or names of zfsilo, at one moment."""

    zvols: tuple[ListedZvol, ...]
    backstores: tuple[str, ...]
    allowed: tuple[tuple[str, tuple[str, ...]], ...]  # targets, each with its initiators
    sessions: tuple[tuple[str, tuple[str, ...]], ...]  # targets, each with the users of its disk
    nodes: tuple[str, ...]  # targets of node records
    logged_in: tuple[tuple[str, str], ...] = ()  # targets, each with an initiator that uses it
    paths: tuple[ExportPath, ...] = ()  # from all targets of this host to zvols


class Orphan(Record):
    """A thing without a record."""

    name: str  # KIND/ID, for the request that removes it
    text: str  # a description for people
    actions: tuple[Action, ...]  # that remove it
    users: tuple[str, ...] = ()  # devices and mount points on this host, or initiators, that use it
    guards: tuple[Action, ...] = ()  # checks before a removal without force
    foreign: bool = False  # zfsilo did not make it: shown, and removed by its owner only
    named: tuple[Action, ...] = ()  # in their place with force


class Owned(Record):
    """The things of records and of running operations: these are not orphans."""

    uids: frozenset[str]  # of the volumes of this server
    targets: frozenset[str]  # of the attachments of this client
    paths: frozenset[str]  # mount points of the attachments
    allowed: frozenset[tuple[str, str]]  # uid and initiator
    exports: tuple[tuple[str, str, str], ...] = ()  # datasets, each with its uid and its target
    busy: frozenset[str] = frozenset()  # targets of running operations


class RemoveOrphans(Request[Inventory]):
    """Remove orphans, with their data. One in use is refused without `force`."""

    descends = True
    kind = "remove-orphans"
    names: tuple[str, ...]
    force: bool = False

    @property
    def subject(self) -> str:
        return "orphans"

    async def gather(self, context: Context, operation_id: str) -> Inventory:
        if not 0 < len(self.names) <= MAX_NAMES:
            raise InvalidArgument(
                f"{len(self.names)} orphans are named; name 1 to {MAX_NAMES} in one request",
                reason="BAD_COUNT",
            )
        return await context.look(partial(take_inventory, context.machine, context.settings))

    def plan(self, view: View, inputs: Inventory) -> Plan:
        present = {
            orphan.name: orphan for orphan in orphans(inputs, owned_things(view.txn), view.settings)
        }
        names = tuple(dict.fromkeys(self.names))
        users: list[str] = []
        actions: list[Action] = []
        for name in names:
            if name not in present:
                raise NotFound(f"there is no orphan {name[:300]}", reason="NO_ORPHAN")
            orphan = present[name]
            if orphan.foreign:
                raise FailedPrecondition(
                    f"{name} was not made by zfsilo: remove it with the tool that made it, for "
                    "example targetcli or nvmetcli",
                    reason="FOREIGN_TARGET",
                    orphan=name,
                )
            if orphan.users and not self.force:
                raise Busy(
                    f"{name} is in use by {', '.join(orphan.users)}: end that first, or remove it "
                    "with --force",
                    reason="IN_USE",
                    orphan=name,
                )
            actions += orphan.named if self.force else orphan.guards
            actions += orphan.actions
            users += orphan.users
        claims = (*(f"orphan/{name}" for name in names), *_claims(view.txn, actions))
        used = f", used by {', '.join(dict.fromkeys(users))}" if users else ""
        return Plan(
            title=f"remove {len(self.names)} orphans{used}",
            claims=tuple(dict.fromkeys(claims)),
            actions=tuple(sorted(actions, key=lambda action: ORDER.index(type(action.step)))),
        )


ORDER = (
    NoSession,
    DiskUnused,
    UsersNamed,
    SessionDropped,
    LazyUnmounted,
    NoNode,
    NoAcl,
    NoExport,
    NoReservations,
    NoOtherPath,
    Zvol,
)
"""A user before the thing that it uses: a session before its export, an export before its zvol."""


def take_inventory(machine: HostAdapters, settings: Settings) -> Inventory:
    """Return the inventory of this host. Starts one process, for any number of volumes."""
    lio = machine.lio
    zvols = machine.zfs.list_zvols(settings.root) if settings.root else []
    prefixes = (settings.export.prefix, DEFAULT_PREFIX)
    paths = tuple(export_paths(machine))
    made = {path.target for path in paths if BACKSTORE.fullmatch(path.backstore)}
    allowed = tuple(
        (target, tuple(adapter.list_acls(target)))
        for adapter in targets(machine)
        for target in adapter.list_targets()
        if any(_has_prefix(target, prefix) for prefix in prefixes)
        or (target in made and TARGET.fullmatch(target))
    )
    return Inventory(
        zvols=tuple(zvol for zvol in zvols if zvol.uid),
        backstores=tuple(name for name in lio.list_backstores() if BACKSTORE.fullmatch(name)),
        allowed=allowed,
        paths=paths,
        logged_in=tuple(
            (target, initiator)
            for target, initiators in allowed
            for initiator in initiators
            if target_adapter(machine, target).has_session(target, initiator)
        ),
        sessions=tuple(
            (target, tuple(adapter.users(_disk(target))))
            for adapter in sessions(machine)
            for target in adapter.sessions()
            if _has_prefix(target, DEFAULT_PREFIX)
        ),
        nodes=tuple(
            target for target in machine.iscsi.nodes() if _has_prefix(target, DEFAULT_PREFIX)
        ),
    )


def owned_things(txn: Transaction) -> Owned:
    """Return the things of all records and of all running operations."""
    uids = {volume.id: volume.uid for volume in txn.scan(Volume)}
    live = [action.step.resources() for op in txn.live() for action in op.actions]
    return Owned(
        uids=frozenset(
            (
                *uids.values(),
                *(trashed.volume.uid for trashed in txn.scan(Trashed)),
                *(uid for resources in live for uid in resources.volumes),
            )
        ),
        targets=frozenset(
            (
                *(attachment.disk.target for attachment in txn.scan(Attachment)),
                *(target for resources in live for target in resources.targets),
            )
        ),
        paths=frozenset(
            (
                *(path for attachment in txn.scan(Attachment) for path in attachment.paths),
                *(path for resources in live for path in resources.paths),
            )
        ),
        allowed=frozenset(
            (
                *(
                    (uids.get(publication.volume, ""), publication.initiator)
                    for publication in txn.scan(Publication)
                ),
                *(
                    (_uid(target), initiator)
                    for resources in live
                    for target, initiator in resources.initiators
                ),
            )
        ),
        exports=tuple((one.dataset, one.uid, one.target) for one in all_volumes(txn)),
        busy=frozenset(target for resources in live for target in resources.targets),
    )


def orphans(inventory: Inventory, owned: Owned, settings: Settings) -> Iterator[Orphan]:
    """Yield the things of an inventory that are not owned: of the server, then of the client."""
    for zvol in inventory.zvols:
        if zvol.uid not in owned.uids:
            yield _zvol(zvol)
    yield from _exports(inventory, owned, settings.export.prefix)
    others = list(_other_paths(inventory, owned, settings.export.prefix))
    yield from others
    shown = {orphan.name.partition("/")[2] for orphan in others}
    for target, initiators in inventory.allowed:
        uid = _uid(target)
        if target in shown:
            continue  # with all its ACLs
        for initiator in initiators:
            if uid in owned.uids and (uid, initiator) not in owned.allowed:
                yield Orphan(
                    name=f"acl/{uid}/{initiator}",
                    text=f"access of {initiator} to target {target}",
                    users=(initiator,) if (target, initiator) in inventory.logged_in else (),
                    guards=_guards(target, (initiator,)),
                    actions=plans.up([NoAcl(target=target, initiator=initiator)]),
                )
    for target, users in inventory.sessions:
        yield from _session(target, users, owned)
    for target in inventory.nodes:
        if target not in owned.targets:
            yield Orphan(
                name=f"node/{target}",
                text=f"node record of {target}",
                actions=plans.up([NoNode(target=target)]),
            )


def _zvol(zvol: ListedZvol) -> Orphan:
    step = Zvol(
        dataset=zvol.dataset,
        uid=zvol.uid,
        guid=zvol.guid,
        size_bytes=zvol.size_bytes,
        thin=zvol.thin,
        volblocksize=zvol.volblocksize,
        properties=(),
        marks=(),
    )
    return Orphan(
        name=f"zvol/{zvol.dataset}",
        text=f"zvol {zvol.dataset} ({zvol.size_bytes} bytes): removal destroys its data; use "
        "zfsiloctl adopt to keep it",
        actions=(
            *plans.up([NoOtherPath(dataset=zvol.dataset, volume=zvol.uid)]),
            *plans.down([step]),
        ),
    )


def _exports(inventory: Inventory, owned: Owned, prefix: str) -> Iterator[Orphan]:
    """Yield targets and backstores, those of one volume together."""
    targets: dict[str, list[str]] = {}
    for target, _initiators in inventory.allowed:
        targets.setdefault(_uid(target), []).append(target)
    backstores = {name.removeprefix("zfsilo-"): name for name in inventory.backstores}
    acls = dict(inventory.allowed)
    for uid in {**targets, **backstores}:
        if uid in owned.uids:
            continue
        *more, last = targets.get(uid, [target_of(prefix, uid)])  # more than one after a rename
        steps = [NoExport(target=target, backstore="") for target in more]
        backstore = backstores.get(uid, f"zfsilo-{uid}")
        yield Orphan(
            name=f"export/{uid}",
            text=f"target {', '.join((*more, last))}",
            users=tuple(user for used, user in inventory.logged_in if used in (*more, last)),
            guards=tuple(
                guard for target in (*more, last) for guard in _guards(target, acls.get(target, ()))
            ),
            actions=plans.up(
                [
                    *steps,
                    NoExport(target=last, backstore=backstore),
                    NoReservations(serial=uid),
                ]
            ),
        )


def _other_paths(inventory: Inventory, owned: Owned, prefix: str) -> Iterator[Orphan]:
    """Yield the targets that lead to the zvol of a volume and that its record does not name.

    They have another host name or prefix, or were made with another tool.
    """
    recorded = {
        dataset: (uid, (target,) if target else tuple(plans.derived_targets(prefix, uid).values()))
        for dataset, uid, target in owned.exports
    }
    for path in inventory.paths:
        uid, own = recorded.get(path.dataset, ("", ()))
        kind, name = ("target", path.target) if path.target else ("backstore", path.backstore)
        if not uid or path.target in (*own, *owned.busy):
            continue
        if not path.target and path.backstore == f"zfsilo-{uid}":
            continue  # half made: the drift of the volume
        ours = path.fabric in plans.FABRICS and path.target.endswith(f":{uid}")
        yield Orphan(
            name=f"{kind}/{name}",
            text=f"{kind} {name}, a second way to {path.dataset}"
            + ("" if ours else "; zfsilo did not make it"),
            users=tuple(user for used, user in inventory.logged_in if used == path.target),
            guards=_guards(path.target, path.initiators) if ours else (),
            actions=plans.up([NoExport(target=path.target, backstore="")]) if ours else (),
            foreign=not ours,
        )


def _guards(target: str, initiators: tuple[str, ...]) -> tuple[Action, ...]:
    """Return the checks in the unit itself: an initiator may log in after the inventory."""
    return plans.up(
        [
            NoSession(target=target, initiator=initiator, volume=_uid(target), host=initiator)
            for initiator in initiators
        ]
    )


def _session(target: str, users: tuple[str, ...], owned: Owned) -> Iterator[Orphan]:
    """Yield a session without a record, with its mounts; else the mounts without a record.

    A recorded mount whose session is lost is not an orphan: a sync restores it (sync.py).
    """
    disk = _disk(target)
    stray = [user for user in users if user[0] == "/" and user not in owned.paths]
    unmounted = [LazyUnmounted(disk=disk, path=path, root=ANYWHERE) for path in reversed(stray)]
    if target not in owned.targets:
        yield Orphan(
            name=f"session/{target}",
            text=f"session with {target}",
            users=tuple(map(show, users)),
            guards=plans.up([DiskUnused(disk=disk)]),
            named=plans.up([UsersNamed(disk=disk, paths=tuple(stray))]),
            actions=plans.up([SessionDropped(disk=disk), *unmounted]),
        )
        return
    for step in unmounted:
        yield Orphan(
            name=f"mount{show(step.path)}",
            text=f"mount of {target} at {show(step.path)}",
            users=(show(step.path),),
            actions=plans.up([step]),
        )


def _claims(txn: Transaction, actions: Sequence[Action]) -> Iterator[str]:
    """Yield the claims of requests that would start to use the removed things."""
    names = {volume.uid: volume.id for volume in txn.scan(Volume)}
    for step in (action.step for action in actions):
        if isinstance(step, Zvol):
            yield f"dataset/{step.dataset}"
        elif isinstance(step, (SessionDropped, LazyUnmounted)):
            yield f"target/{step.disk.target}"
        elif isinstance(step, (NoAcl, NoExport, NoNode)):
            yield f"target/{step.target}"
            if _uid(step.target) in names:
                yield f"volume/{names[_uid(step.target)]}"


def _has_prefix(target: str, prefix: str) -> bool:
    return iqn_form(target.lower()).startswith(prefix) and TARGET.fullmatch(target) is not None


def _uid(target: str) -> str:
    return target.rpartition(":")[2]


def _disk(target: str) -> Disk:
    """Return the disk of a target, without its size."""
    return Disk(target=target, serial=_uid(target), size_bytes=0)

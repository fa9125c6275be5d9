"""Orphans: things on this host with our marks that no record owns. Listed; removed when asked.

They come from a store that was lost, from an operation that was abandoned, or from somebody else's
hand. What a running operation is about is none, though no record may know of it yet.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.engine.steps.access import NoAcl
from zfsilod.engine.steps.export import NoExport
from zfsilod.engine.steps.mount import LazyUnmounted
from zfsilod.engine.steps.session import NoNode, SessionDropped
from zfsilod.engine.steps.zfs import Zvol
from zfsilod.model.errors import Busy, InvalidArgument, NotFound
from zfsilod.model.host_facts import Disk, ListedZvol
from zfsilod.model.record import Record
from zfsilod.model.records import Attachment, Publication, Trashed, Volume
from zfsilod.requests.request import Plan, Request, View

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.model.records import Action
    from zfsilod.model.settings import Settings
    from zfsilod.requests.context import Context
    from zfsilod.storage.store import Transaction

TARGET = re.compile(r"(.+):([0-9a-f]{32})")  # plan.target_name
BACKSTORE = re.compile(r"zfsilo-([0-9a-f]{32})")  # plan.backstore_name
PREFIX = "iqn.2026-01.org.zfsilo:"  # of targets, where no other is configured
MAX_NAMES = 1000


class Inventory(Record):
    """All that carries our marks on a host, at one moment."""

    zvols: tuple[ListedZvol, ...]
    backstores: tuple[str, ...]
    admitted: tuple[tuple[str, tuple[str, ...]], ...]  # targets, and whom each one admits
    sessions: tuple[tuple[str, tuple[str, ...]], ...]  # targets, and who uses the disk of each
    nodes: tuple[str, ...]


class Orphan(Record):
    """A thing that no record owns."""

    name: str  # KIND/WHAT, by which its removal is asked for
    text: str  # what it is, for people
    actions: tuple[Action, ...]  # what removes it
    users: tuple[str, ...] = ()  # who is at work with it on this host


class Owned(Record):
    """What records and running operations account for."""

    uids: frozenset[str]  # of volumes served here
    targets: frozenset[str]  # of volumes used here
    paths: frozenset[str]  # where those are mounted
    admitted: frozenset[tuple[str, str]]  # uid and initiator


class RemoveOrphans(Request[Inventory]):
    """Remove orphans: their data is gone then. One that is in use is refused, unless forced."""

    kind = "remove-orphans"
    names: tuple[str, ...]
    force: bool = False

    @property
    def subject(self) -> str:
        return "orphans"

    async def gather(self, context: Context, operation_id: str) -> Inventory:
        if not 0 < len(self.names) <= MAX_NAMES:
            raise InvalidArgument(
                f"{len(self.names)} orphans are named: it may be 1 to {MAX_NAMES}",
                reason="BAD_COUNT",
            )
        return await context.look(partial(inventory, context.machine, context.settings))

    def plan(self, view: View, inputs: Inventory) -> Plan:
        found = {each.name: each for each in orphans(inputs, owned(view.txn), view.settings)}
        actions: list[Action] = []
        for name in dict.fromkeys(self.names):
            if name not in found:
                raise NotFound(f"there is no orphan {name[:300]}", reason="NO_ORPHAN")
            actions += self._actions(found[name])
        return Plan(
            title=f"remove {len(self.names)} orphans",
            claims=tuple(
                dict.fromkeys(
                    (*(f"orphan/{name}" for name in self.names), *_claims(view.txn, actions))
                )
            ),
            actions=tuple(sorted(actions, key=lambda action: ORDER.index(type(action.step)))),
        )

    def _actions(self, orphan: Orphan) -> tuple[Action, ...]:
        if orphan.users and not self.force:
            raise Busy(
                f"{orphan.name} is in use by {', '.join(orphan.users)}: end that first, or remove "
                "it with --force",
                reason="IN_USE",
                orphan=orphan.name,
            )
        return orphan.actions


ORDER = (SessionDropped, LazyUnmounted, NoNode, NoAcl, NoExport, Zvol)
"""Users first: a session before the export that it is of, an export before its zvol."""


def inventory(machine: HostAdapters, settings: Settings) -> Inventory:
    """Look at everything that carries our marks; one process, whatever there is."""
    lio, iscsi = machine.lio, machine.iscsi
    zvols = machine.zfs.list_zvols(settings.root) if settings.root else []
    return Inventory(
        zvols=tuple(each for each in zvols if each.uid),
        backstores=tuple(each for each in lio.list_backstores() if BACKSTORE.fullmatch(each)),
        admitted=tuple(
            (each, tuple(lio.list_acls(each)))
            for each in lio.list_targets()
            if _is_ours(each, settings.export.prefix)
        ),
        sessions=tuple(
            (each, tuple(iscsi.users(_disk(each))))
            for each in iscsi.sessions()
            if _is_ours(each, PREFIX)
        ),
        nodes=tuple(each for each in iscsi.nodes() if _is_ours(each, PREFIX)),
    )


def owned(txn: Transaction) -> Owned:
    """Return what records account for, and what running operations are about."""
    uids = {each.id: each.uid for each in txn.scan(Volume)}
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
        admitted=frozenset(
            (
                *((uids.get(each.volume, ""), each.initiator) for each in txn.scan(Publication)),
                *((_uid(target), name) for used in live for target, name in used.initiators),
            )
        ),
    )


def orphans(seen: Inventory, known: Owned, settings: Settings) -> Iterator[Orphan]:
    """Yield what is there and that nothing accounts for."""
    yield from _zvols(seen, known)
    yield from _exports(seen, known, settings.export.prefix)
    for target, initiators in seen.admitted:
        for each in initiators:
            if _uid(target) in known.uids and (_uid(target), each) not in known.admitted:
                yield Orphan(
                    name=f"acl/{_uid(target)}/{each}",
                    text=f"the target {target} admits {each}",
                    actions=plans.up([NoAcl(target=target, initiator=each)]),
                )
    yield from _sessions(seen, known)
    for target in seen.nodes:
        if target not in known.targets:
            yield Orphan(
                name=f"node/{target}",
                text=f"a node record of {target}",
                actions=plans.up([NoNode(target=target)]),
            )


def _zvols(seen: Inventory, known: Owned) -> Iterator[Orphan]:
    for each in seen.zvols:
        if each.uid not in known.uids:
            step = Zvol(
                dataset=each.dataset,
                uid=each.uid,
                guid=each.guid,
                size_bytes=each.size_bytes,
                thin=each.thin,
                volblocksize=each.volblocksize,
                properties=(),
                marks=(),
            )
            yield Orphan(
                name=f"zvol/{each.dataset}",
                actions=plans.down([step]),
                text=f"the zvol {each.dataset} of {each.size_bytes} bytes: zfsiloctl adopt takes "
                "it over, its removal destroys its data",
            )


def _exports(seen: Inventory, known: Owned, prefix: str) -> Iterator[Orphan]:
    """Yield targets and backstores, those of one volume together."""
    targets = {_uid(target): target for target, _initiators in seen.admitted}
    backstores = {name.removeprefix("zfsilo-"): name for name in seen.backstores}
    for uid in {**targets, **backstores}:
        if uid in known.uids:
            continue
        target = targets.get(uid, f"{prefix}:{uid}")
        step = NoExport(target=target, backstore=backstores.get(uid, f"zfsilo-{uid}"))
        yield Orphan(name=f"export/{uid}", text=f"the target {target}", actions=plans.up([step]))


def _sessions(seen: Inventory, known: Owned) -> Iterator[Orphan]:
    """Yield sessions, each with its mounts, and mounts that no record has of sessions that one has.

    A mount that went with the session of somebody's record is that record's (sync.py).
    """
    for target, users in seen.sessions:
        disk = _disk(target)
        stray = [each for each in users if each[0] == "/" and each not in known.paths]
        gone = [LazyUnmounted(disk=disk, path=each) for each in reversed(stray)]
        if target not in known.targets:
            yield Orphan(
                name=f"session/{target}",
                text=f"a session with {target}",
                users=users,
                actions=plans.up([SessionDropped(disk=disk), *gone]),
            )
            continue
        for step in gone:
            yield Orphan(
                name=f"mount{step.path}",
                actions=plans.up([step]),
                users=(step.path,),
                text=f"a mount of {target} at {step.path}",
            )


def _claims(txn: Transaction, actions: Sequence[Action]) -> Iterator[str]:
    """Yield what is claimed by those who would begin to use what is removed here."""
    names = {each.uid: each.id for each in txn.scan(Volume)}
    for step in (action.step for action in actions):
        if isinstance(step, Zvol):
            yield f"dataset/{step.dataset}"
        elif isinstance(step, (SessionDropped, LazyUnmounted)):
            yield f"target/{step.disk.target}"
        elif isinstance(step, (NoAcl, NoExport, NoNode)):
            yield f"target/{step.target}"
            if _uid(step.target) in names:
                yield f"volume/{names[_uid(step.target)]}"


def _is_ours(target: str, prefix: str) -> bool:
    return target.startswith(prefix) and TARGET.fullmatch(target) is not None


def _uid(target: str) -> str:
    return target.rpartition(":")[2]


def _disk(target: str) -> Disk:
    """Return the disk of a target, told by it alone."""
    return Disk(target=target, serial=_uid(target), size_bytes=0)

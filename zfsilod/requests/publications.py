"""Requests on publications of a volume: publish, unpublish."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from zfsilod.engine import plans
from zfsilod.host.transports import export_paths
from zfsilod.model.chap import Chap
from zfsilod.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from zfsilod.model.records import Action, Host, Publication, Volume
from zfsilod.model.validation import check_id
from zfsilod.model.words import Transport
from zfsilod.requests.io_limits import check_limits_apply
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put
from zfsilod.requests.rights import check_publish_to_itself, check_volume
from zfsilod.requests.volumes import check_volume_etag, need_primary, need_volume, tls_needs_nvme

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfsilod.model.host_facts import ExportPath
    from zfsilod.model.records import Operation
    from zfsilod.model.words import AccessMode
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Preemption
    from zfsilod.storage.transaction import Transaction

GRACE_S = 5  # for a fenced host to log out, by default
MAX_GRACE_S = 60
MAX_PUBLICATIONS = 256  # of one volume: an operation that ends them all has a few steps for each
WRITERS = {  # how many hosts may write, in modes with several hosts
    "MULTI_NODE_READER_ONLY": 0,
    "MULTI_NODE_SINGLE_WRITER": 1,
    "MULTI_NODE_MULTI_WRITER": 1 << 20,
}
READERS = ("SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY")


class Publish(Request[None]):
    """Export a volume to one host.

    `force`: first fence every host with a conflicting publication.
    """

    kind = "publish"
    resource = ("volumes", "volume")
    volume: str
    host: str
    access_mode: AccessMode | Literal[""] = (
        ""  # "": SINGLE_NODE_WRITER, or the first that the volume allows
    )
    readonly: bool = False
    transport: Transport | Literal[""] = ""  # "": that of its publications, or of the volume
    tls: bool = False  # also with it: beside publications that have it, and of such a volume
    force: bool = False
    client_operation: str = ""  # the operation of the client, when it publishes to itself
    for_csi: bool = False  # for the CSI plugin of the host; implied by the role controller
    etag: str = ""

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        txn = view.txn
        if self.etag:
            check_volume_etag(txn, self.volume, self.etag)
        volume, host = txn.get(Volume, self.volume), txn.get(Host, self.host)
        publication = txn.get(Publication, f"{self.volume}/{self.host}")
        if volume is None or host is None or publication is None:
            return None
        asked = self._resolved(volume, txn)
        if not asked._same(publication) or publication.initiator != asked._initiator(volume, host):
            return None
        if publication != self._confirmed(publication, view):
            return None
        actions = plans.publish(volume, publication, view.settings.export, self._others(txn))
        return (*plans.up([plans.zvol(volume), plans.not_newer(volume)]), *actions)

    def authorise(self, view: View) -> None:
        if view.caller.role != "host":
            return
        check_volume(view, self.volume, self.host)
        if self.force:
            raise PermissionDenied(
                f"{view.caller} may not fence another host from {self.volume}", reason="ROLE"
            )
        if self.for_csi:
            raise PermissionDenied(
                f"{view.caller} may not publish {self.volume} for a CSI plugin", reason="ROLE"
            )
        check_publish_to_itself(need_volume(view.txn, self.volume), self.host)

    def prerequisites(self, view: View, inputs: None) -> Sequence[Request[Any]]:
        others = self._others(view.txn) if self.force else []
        asked = self._resolved(need_volume(view.txn, self.volume), view.txn) if others else self
        if not others or not asked._obstacle(others):
            return []
        fences = [
            Unpublish(volume=self.volume, host=other.host, fence=True, grace_s=0)
            for other in others
        ]
        # It raises before any host is fenced.
        self._plan(view, fenced=[fence.host for fence in fences])
        return [fences[0].but(etag=self.etag), *fences[1:]]

    def continued(self) -> Publish:
        return self.but(etag="")  # the first fence has compared it, and changed it

    def plan(self, view: View, inputs: None) -> Plan:
        fenced = [request.host for request in view.finished if isinstance(request, Unpublish)]
        return self._plan(view, fenced)

    def _resolved(self, volume: Volume, txn: Transaction) -> Publish:
        """Return the request with an access mode, a transport, and whether it has TLS."""
        present = next(iter(txn.scan_below(Publication, volume.id)), volume)
        default: AccessMode = "SINGLE_NODE_WRITER"
        allowed = volume.access_modes
        return self.but(
            transport=self.transport or present.transport,
            tls=self.tls or volume.tls or present.tls,
            access_mode=self.access_mode or (default if default in allowed else allowed[0]),
        )

    def _plan(self, view: View, fenced: Sequence[str]) -> Plan:
        if self.etag:
            check_volume_etag(view.txn, self.volume, self.etag)
        volume = need_primary(view.txn, self.volume)
        host = view.txn.get(Host, check_id(self.host, "host id"))
        if host is None:
            raise NotFound(
                f"unknown host {self.host}: register it first", reason="NO_HOST", host=self.host
            )
        return self._resolved(volume, view.txn)._plan_for(view, volume, host, fenced)

    def _plan_for(self, view: View, volume: Volume, host: Host, fenced: Sequence[str]) -> Plan:
        before = view.txn.get(Publication, f"{self.volume}/{self.host}")
        others = [other for other in self._others(view.txn) if other.host not in fenced]
        if before is not None and not self._same(before):
            raise AlreadyExists(
                f"{self.volume} is published to {self.host} {_manner(before)}, not "
                f"{_manner(self)}: unpublish it first",
                volume=self.volume,
                host=self.host,
            )
        if before is not None and before.initiator == self._initiator(volume, host):
            publication, renewed = self._confirmed(before, view), False
        else:  # new, or the initiator of the host has another name now
            self._check(view, volume, host, others)
            rotation = before.rotation + 1 if before else 0
            publication = self._publication(volume, host, view).but(rotation=rotation)
            renewed = True
        export = view.settings.export
        assert self.transport, "see _resolved"
        named = plans.named(volume, export.prefix, self.transport)
        actions = plans.publish(named, publication, export, others)
        if before is not None and renewed:
            both = [*others, publication]  # the ACL of the new name stands beside the old one's
            actions = (*plans.revoke(named, before, export, both), *actions)
        elif volume.epoch and before is None and not others:
            # What is saved is of a time before the volume was adopted, or came back from a server.
            actions = (*plans.forgotten(named, export), *actions)
        counted = named.but(epoch=max(volume.epoch, publication.epoch))
        first = (
            plans.epoch(volume, counted.epoch, view.operation_id)
            if renewed
            else plans.not_newer(volume)
        )
        return Plan(
            title=f"publish {self.volume} to {self.host} over {_way(self)}",
            claims=(f"volume/{self.volume}",),
            actions=(*plans.up([first]), *actions),
            commit=(
                put(counted.but(state="PUBLISHED")),
                put(publication),
                *((drop_secret(before.secret),) if before is not None and renewed else ()),
            ),
            revert=(put(volume), drop_secret(publication.secret)) if renewed else (),
            secrets={publication.secret: chap_for(publication, named.target)} if renewed else {},
        )

    def _initiator(self, volume: Volume, host: Host) -> str:
        """Return the name by which the host uses the volume."""
        assert self.transport, "see _resolved"
        return plans.initiator_of(self.transport, iqn=host.iqn, host=host.id, volume=volume)

    def _confirmed(self, publication: Publication, view: View) -> Publication:
        """Return the publication, from now on that of a controller when one asks for it."""
        if self._publisher(view) != "controller" or publication.by_controller:
            return publication
        return publication.but(publisher="controller", published_by=str(view.caller))

    def _publisher(self, view: View) -> str:
        """Return the role that publishes: a CSI plugin may use the local socket, as admin."""
        return "controller" if self.for_csi else view.caller.role

    def _others(self, txn: Transaction) -> list[Publication]:
        publications = txn.scan_below(Publication, self.volume)
        return [publication for publication in publications if publication.host != self.host]

    @property
    def _readonly(self) -> bool:
        return self.readonly or self.access_mode in READERS

    def _same(self, publication: Publication) -> bool:
        terms = (self._readonly, self.access_mode, self.transport, self.tls)
        return terms == (
            publication.readonly,
            publication.access_mode,
            publication.transport,
            publication.tls,
        )

    def _check(self, view: View, volume: Volume, host: Host, others: list[Publication]) -> None:
        if self.access_mode not in volume.access_modes:
            raise InvalidArgument(
                f"{volume.id} does not allow {self.access_mode}: use "
                f"{' or '.join(volume.access_modes)}",
                reason="ACCESS_MODE",
                volume=volume.id,
            )
        if self.access_mode in WRITERS and volume.mode == "FILESYSTEM" and not self._readonly:
            raise InvalidArgument(
                f"{self.access_mode} would destroy the filesystem of {volume.id}: publish it "
                "read-only, or with a single-node mode",
                reason="ACCESS_MODE",
                volume=volume.id,
            )
        if self.tls and self.transport != "NVME":
            raise tls_needs_nvme(volume.id)
        if self.transport == "NVME" and self._readonly:
            raise InvalidArgument(
                f"{volume.id} cannot be published read-only over nvme: the kernel's NVMe target "
                "has no write protection for a host; use iscsi",
                reason="NVME_READONLY",
                volume=volume.id,
            )
        assert self.transport, "see _resolved"
        if self.transport != "ISCSI":
            check_limits_apply(volume, self.transport)
        obstacle = self._obstacle(others) if others else ""
        if obstacle:
            holder = others[0].host
            raise FailedPrecondition(
                f"{volume.id} is published to {holder}{obstacle}: unpublish it there first, or "
                "publish with --force",
                reason="PUBLISHED",
                volume=volume.id,
                host=holder,
            )
        if len(others) >= MAX_PUBLICATIONS:
            raise ResourceExhausted(
                f"{volume.id} is published to {len(others)} hosts, which is the limit: unpublish "
                "one first",
                reason="TOO_MANY",
                volume=volume.id,
            )
        published = view.txn.scan_ending(Publication, host.id) if host.max_attachments else ()
        count = sum(publication.volume != self.volume for publication in published)
        if host.max_attachments and count >= host.max_attachments:
            raise ResourceExhausted(
                f"{host.id} has {count} volumes, the limit of its host record; unpublish one, or "
                "raise max_attachments",
                reason="MAX_ATTACHMENTS",
                host=host.id,
            )

    def _obstacle(self, others: list[Publication]) -> str:
        """Return the reason that excludes this publication beside the others; "": none."""
        for other in others:
            # A port with TLS is that of the whole subsystem: one without it beside that would let
            # each of its hosts in without TLS.
            if (other.transport, other.tls) != (self.transport, self.tls):
                return f" over {_way(other)}"
        modes = {self.access_mode, *(other.access_mode for other in others)}
        if not modes <= set(WRITERS):
            return " exclusively"
        writers = [self._readonly, *(other.readonly for other in others)].count(False)
        allowed = min(WRITERS[mode] for mode in modes)
        return f", and only {allowed} of its hosts may write" if writers > allowed else ""

    def _publication(self, volume: Volume, host: Host, view: View) -> Publication:
        assert self.access_mode, "see _resolved"
        assert self.transport, "see _resolved"
        initiator = self._initiator(volume, host)
        if not initiator:
            raise FailedPrecondition(
                f"host {host.id} has no IQN: register it first, or publish over nvme",
                reason="NO_IQN",
                host=host.id,
            )
        return Publication(
            id=f"{volume.id}/{host.id}",
            volume=volume.id,
            host=host.id,
            initiator=initiator,
            transport=self.transport,
            tls=self.tls,
            access_mode=self.access_mode,
            readonly=self._readonly,
            epoch=volume.epoch + 1,
            published_by=str(view.caller),
            publisher=self._publisher(view),
            client_operation=self.client_operation,
            created_at=view.now,
        )


class Unpublish(Request["tuple[ExportPath, ...] | None"]):
    """Withdraw a volume from one host, or from all.

    `fence`: also from a host that is logged in, which may log out within the grace period. Without
    it, a session of the host refuses the request. Input: the paths to the zvol by other targets
    than the recorded one.
    """

    descends = True
    kind = "unpublish"
    resource = ("volumes", "volume")
    volume: str
    host: str = ""  # "": all
    client_operation: str = ""  # only what this operation of the client published
    fence: bool = False
    grace_s: int = GRACE_S
    etag: str = ""
    held: bool = False  # while the pool is held, before it is claimed: requests/ownership.py

    def authorise(self, view: View) -> None:
        check_volume(view, self.volume, self.host)

    def uses_pool(self, view: View) -> bool:
        return not self.held

    async def gather(self, context: Context, operation_id: str) -> tuple[ExportPath, ...]:
        with context.read() as txn:
            volume = need_volume(txn, self.volume)
        target = plans.target_name(context.settings.export.prefix, volume)
        present = await context.look(partial(export_paths, context.machine))
        return tuple(
            path
            for path in present
            if path.dataset == volume.dataset and path.target not in ("", target)
        )

    def plan(self, view: View, inputs: tuple[ExportPath, ...] | None) -> Plan:
        check_volume_etag(view.txn, self.volume, self.etag)
        return self.plan_before(view, inputs)

    def plan_before(
        self, view: View, inputs: tuple[ExportPath, ...] | None, trash: str = ""
    ) -> Plan:
        """Return the plan, also of an operation that moves the zvol to the trash afterwards."""
        if not 0 <= self.grace_s <= MAX_GRACE_S:
            raise InvalidArgument(
                f"invalid grace period of {self.grace_s} s: use 0 to {MAX_GRACE_S} seconds",
                reason="BAD_GRACE",
            )
        volume = need_volume(view.txn, self.volume)
        publications = list(view.txn.scan_below(Publication, self.volume))
        withdrawn = [
            publication
            for publication in publications
            if self.host in ("", publication.host)
            and self.client_operation in ("", publication.client_operation)
        ]
        kept = [publication for publication in publications if publication not in withdrawn]
        fence = plans.Fence(grace_s=self.grace_s) if self.fence else None
        counted = volume.but(epoch=volume.epoch + 1)
        actions: list[Action] = []
        paths = inputs or ()
        if withdrawn:
            guards = [] if fence else plans.no_sessions(volume, withdrawn, view.settings.export)
            target = plans.target_name(view.settings.export.prefix, volume)
            ours = [path for path in paths if plans.is_ours(volume, path)]
            known = (target, *(path.target for path in ours))
            clients = [alias for one in withdrawn for alias in _aliases(view.txn, volume, one)]
            only = plans.no_other_path(volume, clients, known)
            operation = view.operation_id
            first = plans.epoch(volume, counted.epoch, operation, revokes=True, trash=trash)
            actions += plans.up([*guards, only, first])
            for path in ours:
                actions += plans.close_path(volume, path, clients, last=not kept, fence=fence)
        for index, publication in enumerate(withdrawn):
            others = [*kept, *withdrawn[index + 1 :]]
            actions += plans.unpublish(
                volume,
                publication,
                view.settings.export,
                others,
                fence=fence,
                shared=_is_shared(volume, paths),
            )
        after = counted.but(state="PUBLISHED") if kept else _unnamed(counted.but(state="CREATED"))
        verb = "fence" if self.fence else "unpublish"
        return Plan(
            title=f"{verb} {self.volume} from {self.host or 'all hosts'}",
            claims=(f"volume/{self.volume}",),
            actions=tuple(actions),
            commit=(
                *(drop(publication) for publication in withdrawn),
                *(drop_secret(publication.secret) for publication in withdrawn),
                *((put(after),) if withdrawn else ()),
            ),
            revert=(put(volume),) if withdrawn else (),
        )

    def preempts(self, owner: Operation) -> tuple[Preemption, ...]:
        return ("RETRY_ROLLBACK",)


def _is_shared(volume: Volume, paths: Sequence[ExportPath]) -> bool:
    """Tell whether a target of another program has the backstore of a volume, too."""
    name = plans.backstore_name(volume)
    return any(path.backstore == name and not plans.is_ours(volume, path) for path in paths)


def _unnamed(volume: Volume) -> Volume:
    """Return a volume that has no export any more."""
    return volume.but(target="", backstore="")


def _manner(terms: Publish | Publication) -> str:
    readonly = terms.readonly or terms.access_mode in READERS
    access = "read-only" if readonly else "writable"
    return f"over {_way(terms)} as {terms.access_mode}, {access}"


def _way(terms: Publish | Publication) -> str:
    return f"{terms.transport.lower()}{' with TLS' if terms.tls else ''}"


def _aliases(txn: Transaction, volume: Volume, publication: Publication) -> Iterator[Publication]:
    """Yield a publication under every name that its host has, of any transport."""
    host = txn.get(Host, publication.host)
    iqn = host.iqn if host is not None else ""
    names = [
        plans.initiator_of(transport, iqn=iqn, host=publication.host, volume=volume)
        for transport in get_args(Transport)
    ]
    for name in dict.fromkeys([publication.initiator, *filter(None, names)]):
        yield publication.but(initiator=name)


def chap_for(publication: Publication, target: str) -> Chap:
    """Return new secrets for a publication; the user names are the names of both sides."""
    if publication.transport == "NVME":
        return Chap.make_keys(host=publication.initiator, subsystem=target, tls=publication.tls)
    return Chap.make(username=publication.initiator, mutual_username=target)

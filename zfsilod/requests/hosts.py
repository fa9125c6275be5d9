"""Requests on host records: create, register, update and delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.model.name_patterns import HOST_ADDRESS, check_nqn
from zfsilod.model.names import initiator_name
from zfsilod.model.records import Host, Publication, Revocation
from zfsilod.model.validation import check_etag, check_id, check_labels
from zfsilod.requests.publications import chap_for
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put
from zfsilod.requests.rights import check_host
from zfsilod.requests.volumes import need_host, need_volume

if TYPE_CHECKING:
    from zfsilod.model.identity import Caller
    from zfsilod.model.record import Pairs

MAX_ADDRESSES = 16
INITIATOR_NAME, HOST_NQN = "/etc/iscsi/initiatorname.iscsi", "/etc/nvme/hostnqn"
FIELDS = ("iqn", "nqn", "addresses", "labels", "max_attachments")


class CreateHost(Request[None]):
    """Register a host, or (with `register`) update its record."""

    kind = "create-host"
    on_pool = False
    resource = ("hosts", "id")
    id: str
    iqn: str = ""
    nqn: str = ""
    addresses: tuple[str, ...] = ()
    labels: Pairs = ()
    max_attachments: int = 0
    register: bool = False

    def authorise(self, view: View) -> None:
        check_host(view, self.id)

    def known(self, view: View) -> Host | None:
        """Return the record of the host when this registration does not change it.

        Hosts repeat their registration, which must not fill the store with operations.
        """
        self.authorise(view)
        host = view.txn.get(Host, check_id(self.id, "host id"))
        values = self._registered() | ({"iqn": self.iqn.lower()} if self.iqn else {})
        return host if host is not None and bound(view.caller, host.but(**values)) == host else None

    def plan(self, view: View, inputs: None) -> Plan:
        host = view.txn.get(Host, check_id(self.id, "host id"))
        values = {name: getattr(self, name) for name in FIELDS}
        if self.register:
            values = self._registered()
        elif host is not None:
            asked = values | {"iqn": self.iqn.lower()}
            differing = [name for name, value in asked.items() if getattr(host, name) != value]
            if differing:
                raise AlreadyExists(
                    f"host {self.id} exists with another {', '.join(differing)}", host=self.id
                )
        before = host or Host(id=self.id, created_at=view.now)
        new = checked(view, bound(view.caller, before.but(**values, updated_at=view.now)))
        return Plan(
            title=f"register host {self.id}",
            claims=(f"host/{self.id}",),
            commit=(put(new),),
        )

    def _registered(self) -> dict[str, Any]:
        """Return the fields to change: a host that registers keeps those that it leaves empty."""
        return {name: getattr(self, name) for name in FIELDS if getattr(self, name)}


class UpdateHost(Request[None]):
    """Change the fields in `mask` of a host.

    "machine", to "": another machine may register. What the former one has becomes invalid: its
    certificates, and the secrets of its publications, which must have no session.
    """

    kind = "update-host"
    resource = ("hosts", "id")
    id: str
    mask: tuple[str, ...]
    iqn: str = ""
    nqn: str = ""
    addresses: tuple[str, ...] = ()
    labels: Pairs = ()
    max_attachments: int = 0
    machine: str = ""
    etag: str = ""

    def uses_pool(self, view: View) -> bool:
        return "machine" in self.mask

    def plan(self, view: View, inputs: None) -> Plan:
        host = need_host(view.txn, self.id)
        check_etag(self.etag, host.revision)
        unknown = set(self.mask) - {*FIELDS, "machine"}
        if unknown or not self.mask:
            raise InvalidArgument(
                f"invalid update mask {', '.join(sorted(unknown)) or '(empty)'}: allowed are "
                f"{', '.join(FIELDS)}, machine",
                reason="BAD_MASK",
            )
        if self.machine:
            raise InvalidArgument(
                'the machine of a host can only be set to "": the host registers the next one',
                reason="BAD_MASK",
            )
        changes = {name: getattr(self, name) for name in self.mask}
        new = checked(view, host.but(**changes, updated_at=view.now))
        if "machine" in self.mask:
            return self._for_another_machine(view, new)
        return Plan(
            title=f"update host {self.id}",
            claims=(f"host/{self.id}",),
            commit=(put(new),),
        )

    def _for_another_machine(self, view: View, host: Host) -> Plan:
        """Revoke the certificates, and replace the secrets of all publications in one operation.

        It asks for sessions twice: first, to refuse before anything is changed, and directly before
        each change, since the epochs between take a while.
        """
        export = view.settings.export
        before = list(view.txn.scan_ending(Publication, host.id))
        after = [old.but(rotation=old.rotation + 1, rotation_due=False) for old in before]
        volumes = [need_volume(view.txn, publication.volume) for publication in before]
        counted = [volume.but(epoch=volume.epoch + 1) for volume in volumes]
        guards = [
            guard
            for volume, old in zip(volumes, before, strict=True)
            for guard in plans.no_sessions(volume, [old], export)
        ]
        epochs = [plans.epoch(volume, volume.epoch, view.operation_id) for volume in counted]
        secrets = [
            plans.rotation(volume, old, new, export)
            for volume, old, new in zip(volumes, before, after, strict=True)
        ]
        guarded = [step for pair in zip(guards, secrets, strict=True) for step in pair]
        revocation = Revocation(id=f"host/{host.id}", revoked_at=view.now)
        return Plan(
            title=f"bind host {self.id} to another machine",
            claims=(f"host/{self.id}", *(f"volume/{volume.id}" for volume in volumes)),
            actions=plans.up([*guards, *epochs, *guarded]),
            commit=(
                put(host),
                *((put(revocation),) if host.authority != "IMPORTED" else ()),
                *map(put, counted),
                *map(put, after),
                *(drop_secret(publication.secret) for publication in before),
            ),
            revert=(
                *map(put, volumes),
                *(drop_secret(publication.secret) for publication in after),
            ),
            secrets={
                new.secret: chap_for(new, plans.target_name(export.prefix, volume))
                for volume, new in zip(volumes, after, strict=True)
            },
        )


class DeleteHost(Request[None]):
    """Delete a host without publications."""

    descends = True
    kind = "delete-host"
    on_pool = False
    resource = ("hosts", "id")
    id: str
    etag: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        host = need_host(view.txn, self.id)
        check_etag(self.etag, host.revision)
        published = view.txn.scan_ending(Publication, host.id)
        volumes = [publication.volume for publication in published]
        if volumes:
            more = " and more" if volumes[5:] else ""
            raise FailedPrecondition(
                f"volumes are published to {host.id}: {', '.join(volumes[:5])}{more}; unpublish "
                "them first",
                reason="PUBLISHED",
                host=host.id,
            )
        return Plan(
            title=f"delete host {self.id}",
            claims=(f"host/{self.id}",),
            commit=(drop(host),),
        )


def bound(caller: Caller, host: Host) -> Host:
    """Return a host with the machine and the authority of its first contact."""
    if caller.role != "host":
        return host
    return host.but(
        machine=host.machine or caller.machine,
        authority=host.authority or caller.authority,
    )


def checked(view: View, host: Host) -> Host:
    """Return the host when its fields are valid and its names are not those of another host."""
    host = host.but(
        iqn=initiator_name(host.iqn) if host.iqn else "",
        nqn=check_nqn(host.nqn) if host.nqn else "",
    )
    if len(host.addresses) > MAX_ADDRESSES or not all(map(HOST_ADDRESS.fullmatch, host.addresses)):
        raise InvalidArgument(
            f"invalid addresses of host {host.id}: pass at most {MAX_ADDRESSES} names or addresses",
            reason="BAD_ADDRESS",
        )
    if not 0 <= host.max_attachments <= 1 << 20:
        raise InvalidArgument("max_attachments must be 0 (no limit) to 1048576")
    for other in view.txn.scan(Host):
        if other.id != host.id:
            _check_names(host, other)
    return host.but(labels=check_labels(host.labels))


def _check_names(host: Host, other: Host) -> None:
    """Raise AlreadyExists when a name of a host is that of another one, in any case of letters."""
    taken = {other.iqn.lower(), other.nqn.lower()} - {""}
    for name, path in ((host.iqn, INITIATOR_NAME), (host.nqn, HOST_NQN)):
        if name.lower() in taken:
            raise AlreadyExists(
                f"{name} is the name of host {other.id}: set a unique one in {path}",
                reason="NAME_TAKEN",
                host=other.id,
            )

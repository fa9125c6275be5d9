"""Requests on host records: create, register, update and delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.model.names import HOST_ADDRESS, check_nqn, initiator_name
from zfsilod.model.records import Host, Publication
from zfsilod.model.validation import check_etag, check_id, check_labels
from zfsilod.requests.request import Plan, Request, View, drop, put
from zfsilod.requests.rights import check_host
from zfsilod.requests.volumes import need_host

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs

MAX_ADDRESSES = 16
FIELDS = ("iqn", "nqn", "addresses", "labels", "max_attachments")


class CreateHost(Request[None]):
    """Register a host, or (with `register`) update its record."""

    kind = "create-host"
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

    def plan(self, view: View, inputs: None) -> Plan:
        host = view.txn.get(Host, check_id(self.id, "host id"))
        values = {name: getattr(self, name) for name in FIELDS}
        if self.register:  # a host that registers keeps the fields that it leaves empty
            values = {name: value for name, value in values.items() if value}
        elif host is not None:
            asked = values | {"iqn": self.iqn.lower()}
            differing = [name for name, value in asked.items() if getattr(host, name) != value]
            if differing:
                raise AlreadyExists(
                    f"host {self.id} exists with another {', '.join(differing)}", host=self.id
                )
        before = host or Host(id=self.id, created_at=view.now)
        new = checked(view, before.but(**values, updated_at=view.now))
        return Plan(
            title=f"register host {self.id}",
            claims=(f"host/{self.id}",),
            commit=(put(new),),
        )


class UpdateHost(Request[None]):
    """Change the fields in `mask` of a host."""

    kind = "update-host"
    resource = ("hosts", "id")
    id: str
    mask: tuple[str, ...]
    iqn: str = ""
    nqn: str = ""
    addresses: tuple[str, ...] = ()
    labels: Pairs = ()
    max_attachments: int = 0
    etag: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        host = need_host(view.txn, self.id)
        check_etag(self.etag, host.revision)
        unknown = set(self.mask) - set(FIELDS)
        if unknown or not self.mask:
            raise InvalidArgument(
                f"invalid update mask {', '.join(sorted(unknown)) or '(empty)'}: allowed are "
                f"{', '.join(FIELDS)}",
                reason="BAD_MASK",
            )
        changes = {name: getattr(self, name) for name in self.mask}
        new = checked(view, host.but(**changes, updated_at=view.now))
        return Plan(
            title=f"update host {self.id}",
            claims=(f"host/{self.id}",),
            commit=(put(new),),
        )


class DeleteHost(Request[None]):
    """Delete a host without publications."""

    kind = "delete-host"
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
        shared = {host.iqn, host.nqn} & {other.iqn, other.nqn} - {""}
        if other.id != host.id and shared:
            raise AlreadyExists(
                f"{shared.pop()} is the name of host {other.id}: set a unique one in "
                "/etc/iscsi/initiatorname.iscsi",
                reason="NAME_TAKEN",
                host=other.id,
            )
    return host.but(labels=check_labels(host.labels))

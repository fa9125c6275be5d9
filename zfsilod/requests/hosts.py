"""The requests about hosts: records only, no moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.model.names import HOST_ADDRESS, check_nqn, initiator_name
from zfsilod.model.records import Host, Publication
from zfsilod.model.validation import check_etag, check_id, check_labels
from zfsilod.requests.request import Plan, Request, View, drop, put
from zfsilod.requests.volumes import need_host

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs

MAX_ADDRESSES = 16
FIELDS = ("iqn", "nqn", "addresses", "labels", "max_attachments")


class CreateHost(Request):
    """Register a host, or (with `register`) bring what is known of it up to date."""

    kind = "create-host"
    resource = ("hosts", "id")
    id: str
    iqn: str = ""
    nqn: str = ""
    addresses: tuple[str, ...] = ()
    labels: Pairs = ()
    max_attachments: int = 0
    register: bool = False

    def plan(self, view: View, seen: object) -> Plan:
        found = view.txn.get(Host, check_id(self.id, "host id"))
        differing = self._differences(found) if found and not self.register else []
        if differing:
            raise AlreadyExists(
                f"the host {self.id} exists, with another {', '.join(differing)}", host=self.id
            )
        new = checked(
            view,
            (found or Host(id=self.id, created_at=view.now)).but(
                **self._told(), updated_at=view.now
            ),
        )
        return Plan(
            title=f"register host {self.id}",
            claims=(f"host/{self.id}",),
            commit=(put(new),),
        )

    def _told(self) -> dict[str, Any]:
        """Return what the request says; a host that registers leaves open what others noted."""
        told = {name: getattr(self, name) for name in FIELDS}
        return {name: value for name, value in told.items() if value or not self.register}

    def _differences(self, found: Host) -> list[str]:
        asked = {name: getattr(self, name) for name in FIELDS} | {"iqn": self.iqn.lower()}
        return [name for name, value in asked.items() if getattr(found, name) != value]


class UpdateHost(Request):
    """Change what `mask` names of a host."""

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

    def plan(self, view: View, seen: object) -> Plan:
        found = need_host(view.txn, self.id)
        check_etag(self.etag, found.revision)
        unknown = set(self.mask) - set(FIELDS)
        if unknown or not self.mask:
            raise InvalidArgument(
                f"the update mask names {', '.join(sorted(unknown)) or 'nothing'}: it may name "
                f"{', '.join(FIELDS)}",
                reason="BAD_MASK",
            )
        changes = {name: getattr(self, name) for name in self.mask}
        new = checked(view, found.but(**changes, updated_at=view.now))
        return Plan(
            title=f"update host {self.id}",
            claims=(f"host/{self.id}",),
            commit=(put(new),),
        )


class DeleteHost(Request):
    """Forget a host that nothing is published to."""

    kind = "delete-host"
    resource = ("hosts", "id")
    id: str
    etag: str = ""

    def plan(self, view: View, seen: object) -> Plan:
        found = need_host(view.txn, self.id)
        check_etag(self.etag, found.revision)
        _refuse_published(view, found)
        return Plan(
            title=f"delete host {self.id}",
            claims=(f"host/{self.id}",),
            commit=(drop(found),),
        )


def checked(view: View, host: Host) -> Host:
    """Return a host whose fields are valid and whose names belong to nobody else."""
    host = host.but(
        iqn=initiator_name(host.iqn) if host.iqn else "",
        nqn=check_nqn(host.nqn) if host.nqn else "",
    )
    if len(host.addresses) > MAX_ADDRESSES or not all(map(HOST_ADDRESS.fullmatch, host.addresses)):
        raise InvalidArgument(
            f"invalid addresses of host {host.id}; give at most {MAX_ADDRESSES} names or addresses",
            reason="BAD_ADDRESS",
        )
    if not 0 <= host.max_attachments <= 1 << 20:
        raise InvalidArgument("max_attachments must be 0 (no limit) to 1048576")
    for other in view.txn.scan(Host):
        shared = {host.iqn, host.nqn} & {other.iqn, other.nqn} - {""}
        if other.id != host.id and shared:
            raise AlreadyExists(
                f"{shared.pop()} is the name of host {other.id}: give this machine its own "
                "(/etc/iscsi/initiatorname.iscsi)",
                reason="NAME_TAKEN",
                host=other.id,
            )
    return host.but(labels=check_labels(host.labels))


def _refuse_published(view: View, host: Host) -> None:
    held = [each.volume for each in view.txn.scan_ending(Publication, host.id)]
    if held:
        raise FailedPrecondition(
            f"{host.id} holds {', '.join(held[:5])}{' and more' if held[5:] else ''}: unpublish "
            "first",
            reason="PUBLISHED",
            host=host.id,
        )

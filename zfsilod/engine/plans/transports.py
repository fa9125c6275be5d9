"""The table of transports: the steps that are not the same for all of them. Pure.

A further transport is adapters (host/transports.py), steps, and one line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, get_args

from zfsilod.engine.steps.access import Acl, MappedLun, NoReservations
from zfsilod.engine.steps.export import (
    Backstore,
    ControllerIds,
    Enabled,
    Lun,
    Namespace,
    Portals,
    Target,
)
from zfsilod.engine.steps.limits import Limited
from zfsilod.engine.steps.nvme import Controller, ControllerPortal, QueueLimit
from zfsilod.engine.steps.session import LossWait, Node, Session, SessionPortal
from zfsilod.model.host_facts import NO_LIMITS
from zfsilod.model.names import host_nqn, target_of, transport_of
from zfsilod.model.words import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zfsilod.model.host_facts import IoLimits
    from zfsilod.model.records import Attachment, Publication, Step, Volume
    from zfsilod.model.settings import Export

ALL: tuple[Transport, ...] = get_args(Transport)
FABRICS = ("iscsi", "nvme")  # ExportPath.fabric of targets that zfsilo makes


class TransportSteps(NamedTuple):
    """The steps of one transport, each list from the first one to make to the last one."""

    export: Callable[[Volume, str, Export], list[Step]]
    """A target that admits no client; of a volume, with the name of its target."""
    listening: Callable[[str, Export], list[Step]]
    """What lets the target answer. It follows the access of all clients: one that does not hold a
    reservation must not come before that of another client is in force."""
    opening: Callable[[str, Export, Sequence[Publication]], list[Step]]
    """What follows the access of the clients: a client must not find a target that refuses it.

    Of a target and its publications, of which all have TLS, or none has.
    """
    access: Callable[[str, Publication, tuple[str, ...]], list[Step]]
    """The access of one client to a target, with the initiators of others that have access."""
    forgotten: Callable[[Volume, str], list[Step]]
    """What the end of the access of an initiator leaves on disk; "": of all."""
    connection: Callable[[Attachment, int], list[Step]]
    """State CONNECTED; the number is Settings.lost_session_s."""


def steps_of(target: str) -> TransportSteps:
    """Return the steps of the transport of a target."""
    return TRANSPORTS[transport_of(target)]


def initiator_of(transport: Transport, *, iqn: str, host: str, volume: Volume) -> str:
    """Return the name by which a host uses a volume; "" when the host has none."""
    return host_nqn(host, volume.uid) if transport == "NVME" else iqn


def own_targets(prefix: str, volume: Volume) -> tuple[str, ...]:
    """Return the names that the target of a volume has, or would have, one for each transport."""
    recorded = {transport_of(volume.target): volume.target} if volume.target else {}
    return tuple((derived_targets(prefix, volume.uid) | recorded).values())


def derived_targets(prefix: str, uid: str) -> dict[Transport, str]:
    """Return the names of new targets of a volume."""
    return {transport: target_of(prefix, uid, transport=transport) for transport in ALL}


def backstore_name(volume: Volume) -> str:
    """Return the name of a volume's backstore, as the record has it."""
    return volume.backstore or f"zfsilo-{volume.uid}"


def _iscsi_export(volume: Volume, target: str, _export: Export) -> list[Step]:
    backstore = backstore_name(volume)
    return [
        Backstore(name=backstore, dataset=volume.dataset, serial=volume.uid),
        *([limited(volume, volume.limits, NO_LIMITS)] if volume.limits else []),
        Target(target=target),
        Lun(target=target, backstore=backstore),
    ]


def _iscsi_listening(target: str, export: Export) -> list[Step]:
    return [Portals(target=target, portals=export.portals), Enabled(target=target)]


def _iscsi_forgotten(volume: Volume, initiator: str) -> list[Step]:
    return [NoReservations(serial=volume.uid, client=initiator)]


def limited(volume: Volume, limits: IoLimits, previous: IoLimits) -> Limited:
    """Return the change of the limits of the I/O of a volume, which is exported over iSCSI."""
    return Limited(
        dataset=volume.dataset,
        backstore=backstore_name(volume),
        limits=limits,
        previous_limits=previous,
    )


def _iscsi_access(target: str, publication: Publication, others: tuple[str, ...]) -> list[Step]:
    return [
        _acl(target, publication, others),
        MappedLun(target=target, initiator=publication.initiator, readonly=publication.readonly),
    ]


def _iscsi_connection(attachment: Attachment, lost_session_s: int) -> list[Step]:
    return [
        Node(
            target=attachment.disk.target,
            portals=attachment.portals,
            secret=attachment.secret,
            server=attachment.server,
            lost_session_s=lost_session_s,
        ),
        SessionPortal(disk=attachment.disk, portals=attachment.portals),
        Session(disk=attachment.disk),
        LossWait(disk=attachment.disk, seconds=lost_session_s),
    ]


def _nvme_export(volume: Volume, target: str, export: Export) -> list[Step]:
    return [
        Target(target=target),
        Namespace(target=target, dataset=volume.dataset, serial=volume.uid),
        ControllerIds(target=target, first=export.nvme_cntlid_min, last=export.nvme_cntlid_max),
    ]


def _nvme_opening(target: str, export: Export, publications: Sequence[Publication]) -> list[Step]:
    """A client gives its controller up when it is refused once, so the ports come last."""
    tls = any(publication.tls for publication in publications)
    return [Portals(target=target, portals=export.portals_of("NVME", tls=tls), tls=tls)]


def _nvme_access(target: str, publication: Publication, others: tuple[str, ...]) -> list[Step]:
    return [_acl(target, publication, others)]


def _nvme_connection(attachment: Attachment, lost_session_s: int) -> list[Step]:
    portal, controller = (
        step(
            disk=attachment.disk,
            portals=attachment.portals,
            secret=attachment.secret,
            server=attachment.server,
            lost_session_s=lost_session_s,
        )
        for step in (ControllerPortal, Controller)
    )
    return [
        portal,
        controller.but(tls=attachment.tls),
        QueueLimit(disk=attachment.disk),
        LossWait(disk=attachment.disk, seconds=lost_session_s),
    ]


def _acl(target: str, publication: Publication, others: Sequence[str]) -> Acl:
    return Acl(
        target=target,
        initiator=publication.initiator,
        secret=publication.secret,
        allowed=tuple(others),
    )


def _nothing(*_arguments: object) -> list[Step]:
    return []


TRANSPORTS: dict[Transport, TransportSteps] = {
    "ISCSI": TransportSteps(
        export=_iscsi_export,
        listening=_iscsi_listening,
        opening=_nothing,
        access=_iscsi_access,
        forgotten=_iscsi_forgotten,
        connection=_iscsi_connection,
    ),
    "NVME": TransportSteps(
        export=_nvme_export,
        listening=_nothing,
        opening=_nvme_opening,
        access=_nvme_access,
        forgotten=_nothing,
        connection=_nvme_connection,
    ),
}

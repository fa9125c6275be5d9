"""Rights of a caller on single resources, checked in the transaction that uses them.

Which roles may call a method at all is in security/authorization.py. Here are the limits within a
role: a host acts for itself only, on volumes that it can see; a CSI node acts on its own
attachments: it made them itself, of volumes that a controller published, their local names begin
with csi-, they are not restored at boot, and all their paths are below csi.allowed_paths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.host.places import ANYWHERE
from zfsilod.model.errors import NotFound, PermissionDenied
from zfsilod.model.records import Attachment
from zfsilod.requests.paths import not_allowed
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from zfsilod.model.connection import Connection
    from zfsilod.model.identity import Caller
    from zfsilod.model.records import Volume
    from zfsilod.requests.request import View
    from zfsilod.storage.volume_view import VolumeView

NODE_PREFIX = "csi-"
"""Of local names: others are names of zfsilo-volume@ units, which an administrator starts."""


def visible_to(caller: Caller, view: VolumeView, node_paths: tuple[str, ...]) -> VolumeView | None:
    """Return the part of a volume's view that a caller may see, or None.

    A host sees a volume that is published to it or that it may publish to itself, with its own
    publications only; a node sees its own attachments.
    """
    if caller.role == "node":
        if view.attachment is None or not is_own(view.attachment, node_paths):
            return None
        return view.but(volume=None, publications=())
    if caller.role != "host":
        return view
    if view.volume is None:
        return None
    own = tuple(
        publication for publication in view.publications if publication.host == caller.subject
    )
    hosts = tuple(host for host in view.volume.hosts if host in ("*", caller.subject))
    if not own and not hosts:
        return None
    return view.but(volume=view.volume.but(hosts=hosts), publications=own, attachment=None)


def check_volume(view: View, volume_id: str, host_id: str) -> None:
    """Raise when a caller of role host may not act on a volume for this host ("": for all)."""
    if view.caller.role != "host":
        return
    known = volume_view(view.txn, volume_id)
    if visible_to(view.caller, known, ()) is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    check_host(view, host_id)


def check_publish_to_itself(volume: Volume, host_id: str) -> None:
    """Raise PermissionDenied unless the volume lists this host in `hosts`."""
    if host_id not in volume.hosts and "*" not in volume.hosts:
        raise PermissionDenied(
            f"{volume.id} does not allow {host_id} to publish it to itself; on the server: "
            f"zfsiloctl volume update {volume.id} --host {host_id}",
            reason="NOT_ITS_HOST",
            volume=volume.id,
            host=host_id,
        )


def check_host(view: View, host_id: str) -> None:
    """Raise PermissionDenied when a caller of role host names another host, or all."""
    if view.caller.role == "host" and host_id != view.caller.subject:
        raise PermissionDenied(
            f"{view.caller} may not act for {f'host {host_id[:128]}' if host_id else 'all hosts'}",
            reason="OTHER_HOST",
        )


def check_attachment(view: View, attachment_id: str) -> None:
    """Raise PermissionDenied when a CSI node names an attachment that it may not use."""
    if view.caller.role != "node":
        return
    if not attachment_id.startswith(NODE_PREFIX):
        raise PermissionDenied(
            f"{attachment_id[:128]} is not a name of the CSI node: its names begin with "
            f"{NODE_PREFIX}; use zfsiloctl on this host",
            reason="NOT_THE_NODES",
        )
    attachment = view.txn.get(Attachment, attachment_id)
    if attachment is not None and not is_own(attachment, view.settings.node_paths):
        raise PermissionDenied(
            f"{attachment.id} is not an attachment of the CSI node: it was connected by an "
            f"administrator, is restored at boot, or is mounted outside "
            f"{', '.join(view.settings.node_paths)}; use zfsiloctl on this host",
            reason="NOT_THE_NODES",
            volume=attachment.id,
        )


def check_connect(view: View, *, restore: str, publish_if_needed: bool) -> None:
    """Raise PermissionDenied when a CSI node asks to restore at boot, or to publish."""
    if view.caller.role != "node":
        return
    if restore != "NEVER":
        raise PermissionDenied(
            "a CSI node may not have an attachment restored at boot; connect with restore NEVER",
            reason="NOT_THE_NODES",
        )
    if publish_if_needed:
        raise PermissionDenied(
            "a CSI node may not publish a volume; publish it with the role controller",
            reason="NOT_THE_NODES",
        )


def check_mount_path(view: View, path: str, root: str) -> None:
    """Raise PermissionDenied when a CSI node names a path outside of csi.allowed_paths."""
    if view.caller.role != "node":
        return
    folders = view.settings.node_paths
    if root == ANYWHERE or not is_below(path, (root,) if root else folders):
        raise not_allowed(path, folders)


def check_publisher(view: View, server: str, connection: Connection) -> None:
    """Raise PermissionDenied when a CSI node connects what no controller published."""
    if view.caller.role == "node" and not connection.by_controller:
        raise PermissionDenied(
            f"{connection.volume} of {server} was not published to this host by a controller, so "
            "the CSI node may not connect it; publish it with the role controller",
            reason="NOT_BY_CONTROLLER",
            volume=connection.volume,
        )


def check_leftover(view: View, paths: tuple[str, ...]) -> None:
    """Raise PermissionDenied when a CSI node would unmount paths that are not its own."""
    outside = [path for path in paths if not is_below(path, view.settings.node_paths)]
    if view.caller.role == "node" and outside:
        raise PermissionDenied(
            f"an old session is mounted at {outside[0]}, which the CSI node may not unmount; "
            "unmount it on this host first",
            reason="NOT_THE_NODES",
        )


def is_own(attachment: Attachment, node_paths: tuple[str, ...]) -> bool:
    """Tell whether a CSI node may use an attachment."""
    below = all(
        root not in ("", ANYWHERE) or is_below(path, node_paths)
        for path, root in attachment.rooted_paths
    )
    named = attachment.id.startswith(NODE_PREFIX) and attachment.connected_by in ("", "node")
    return below and named and attachment.restore == "NEVER"


def is_below(path: str, folders: tuple[str, ...]) -> bool:
    """Tell whether a path is below one of these folders, by its text alone."""
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in folders)

"""`zfsiloctl volume`: the verbs of a consumer, from connect to mount and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl.change import change
from zfsilod.ctl.client import dial
from zfsilod.ctl.commands.volume import one_or_all
from zfsilod.ctl.parse import bare, resource
from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from argparse import Namespace


def connect(given: Namespace) -> None:
    """Log in to a volume of a server, which publishes it if need be."""
    request = pb.ConnectVolumeRequest(
        server=given.server or only_server(),
        volume=bare(given.name, "volumes"),
        local_name=given.local_name,
        publish_if_needed=not given.no_publish,
        epoch=given.epoch,
        restore=pb.RESTORE_BOOT if given.restore == "boot" else pb.RESTORE_NEVER,
    )
    with dial(given) as server:
        change(given, server, server.changes.volumes.ConnectVolume, request)


def disconnect(given: Namespace) -> None:
    """Log out, and release what this host published to itself."""
    request = pb.DisconnectVolumeRequest(
        name=resource(given.name, "volumes"), etag=given.etag, force=given.force
    )
    with dial(given) as server:
        change(given, server, server.changes.volumes.DisconnectVolume, request)


def stage(given: Namespace) -> None:
    """Make the filesystem once, and mount it at the staging path."""
    request = pb.StageVolumeRequest(
        name=resource(given.name, "volumes"),
        path=given.path,
        fs_type=given.fs_type,
        mount_options=mount_options(given.option),
        readonly=given.readonly,
        etag=given.etag,
    )
    with dial(given) as server:
        change(given, server, server.changes.volumes.StageVolume, request)


def unstage(given: Namespace) -> None:
    """Unmount the staging path."""
    request = pb.UnstageVolumeRequest(
        name=resource(given.name, "volumes"), path=given.path, etag=given.etag, force=given.force
    )
    with dial(given) as server:
        change(given, server, server.changes.volumes.UnstageVolume, request)


def mount(given: Namespace) -> None:
    """Make a staged volume appear at one more path."""
    request = pb.MountVolumeRequest(
        name=resource(given.name, "volumes"),
        path=given.path,
        readonly=given.readonly,
        etag=given.etag,
    )
    with dial(given) as server:
        change(given, server, server.changes.volumes.MountVolume, request)


def unmount(given: Namespace) -> None:
    """Take a volume away from one path, or from all."""
    one_or_all(given.path, "PATH", everything=given.all)
    request = pb.UnmountVolumeRequest(
        name=resource(given.name, "volumes"),
        path=given.path or "",
        all_paths=given.all,
        etag=given.etag,
        force=given.force,
    )
    with dial(given) as server:
        change(given, server, server.changes.volumes.UnmountVolume, request)


def grow(given: Namespace) -> None:
    """See and use the size that a volume has at its server."""
    request = pb.GrowVolumeRequest(name=resource(given.name, "volumes"), etag=given.etag)
    with dial(given) as server:
        change(given, server, server.changes.volumes.GrowVolume, request)


def mount_options(texts: list[str]) -> list[str]:
    """Return mount options, given one by one or with commas."""
    return [option for text in texts for option in text.split(",") if option]


def only_server() -> str:
    """Return the name of the one server that this host knows. Raises InvalidArgument."""
    from zfsilod.ctl.server_files import names

    known = names()
    if len(known) == 1:
        return known[0]
    said = f"this host knows {', '.join(known)}" if known else "this host knows none"
    raise InvalidArgument(f"name the server with --server: {said}", reason="NO_SERVER")

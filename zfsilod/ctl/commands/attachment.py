"""`zfsiloctl volume` on a client: connect, stage, mount, grow, and undo each of these."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change
from zfsilod.ctl.client import dial
from zfsilod.ctl.features import check_tls
from zfsilod.ctl.parse import bare, check_one_or_all, mount_options, resource, transport
from zfsilod.ctl.server_files import only_name
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace


def connect(args: Namespace) -> None:
    """Log in to a volume of a server, and publish it to this host where necessary."""
    request = pb.ConnectVolumeRequest(
        server=args.server or only_name(),
        volume=bare(args.name, "volumes"),
        local_name=args.local_name,
        publish_if_needed=not args.no_publish,
        epoch=args.epoch,
        restore=pb.RESTORE_BOOT if args.restore == "boot" else pb.RESTORE_NEVER,
        tls=args.tls,
    )
    if args.transport:
        request.transport = transport(args.transport)
    with dial(args) as server:
        check_tls(server, wanted=args.tls)
        change(args, server, "ConnectVolume", request)


def disconnect(args: Namespace) -> None:
    """Log out of a volume, and unpublish it if this host published it to itself."""
    request = pb.DisconnectVolumeRequest(
        name=resource(args.name, "volumes"), etag=args.etag, force=args.force
    )
    with dial(args) as server:
        change(args, server, "DisconnectVolume", request)


def stage(args: Namespace) -> None:
    """Create the filesystem once, and mount it at the staging path."""
    request = pb.StageVolumeRequest(
        name=resource(args.name, "volumes"),
        path=args.path,
        fs_type=args.fs_type,
        mount_options=mount_options(args.option),
        readonly=args.readonly,
        etag=args.etag,
    )
    with dial(args) as server:
        change(args, server, "StageVolume", request)


def unstage(args: Namespace) -> None:
    """Unmount the staging path."""
    request = pb.UnstageVolumeRequest(
        name=resource(args.name, "volumes"), path=args.path, etag=args.etag, force=args.force
    )
    with dial(args) as server:
        change(args, server, "UnstageVolume", request)


def mount(args: Namespace) -> None:
    """Mount a staged volume at a path."""
    request = pb.MountVolumeRequest(
        name=resource(args.name, "volumes"),
        path=args.path,
        readonly=args.readonly,
        etag=args.etag,
    )
    with dial(args) as server:
        change(args, server, "MountVolume", request)


def unmount(args: Namespace) -> None:
    """Unmount a volume from one path, or from all."""
    check_one_or_all(args.path, "PATH", everything=args.all)
    request = pb.UnmountVolumeRequest(
        name=resource(args.name, "volumes"),
        path=args.path or "",
        all_paths=args.all,
        etag=args.etag,
        force=args.force,
    )
    with dial(args) as server:
        change(args, server, "UnmountVolume", request)


def grow(args: Namespace) -> None:
    """Enlarge the disk and filesystem to the size of the volume on its server."""
    request = pb.GrowVolumeRequest(name=resource(args.name, "volumes"), etag=args.etag)
    with dial(args) as server:
        change(args, server, "GrowVolume", request)

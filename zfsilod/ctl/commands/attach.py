"""`zfsiloctl volume attach` and `detach`: attach a volume at a path, now and at every boot.

An attachment is a file of /etc/zfsilo/volumes.d, which zfsilo-volume@NAME.service carries out.
"""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace

from zfsilod.ctl import messages as pb
from zfsilod.ctl import server_files, volume_files
from zfsilod.ctl.client import Server
from zfsilod.ctl.commands import up
from zfsilod.ctl.failures import COMPLAINT
from zfsilod.ctl.parse import mount_options, resource
from zfsilod.ctl.require_local import check_real
from zfsilod.ctl.volume_files import unit_of
from zfsilod.host.run import Runner
from zfsilod.model.errors import (
    AlreadyExists,
    CommandFailed,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.validation import check_id

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.ctl.volume_files import VolumeFile

TOOL_S = 30.0
REACH_S = 5.0
UNIT_S = 360.0  # zfsilo-volume@ waits 300 s for its server


def attach(args: Namespace) -> None:
    """Write the file of an attachment, and enable and start its unit."""
    check_real(args, "volume attach", "use volume connect, stage and mount")
    name = check_id(args.local_name or args.name, "volume name")
    path = os.path.abspath(args.path)  # noqa: PTH100 - not resolved: links may change
    existing = volume_files.read(name)
    if existing is not None:
        _check_same(args, existing, path)
    else:
        args.server = args.server or server_files.only_name()
        text = content(args, name, path)
        check_volume(args.server, check_id(args.name, "volume id"))
        _write(volume_files.path_of(name), text)
    created, since = existing is None, int(time.time())
    try:
        volume_files.read(name)  # what was written is valid
        Runner()(["systemctl", "enable", "--now", unit_of(name)], timeout_s=UNIT_S)
    except (CommandFailed, InvalidArgument) as error:
        remains = _undo(args, name) if created else ""
        why = error.message if isinstance(error, InvalidArgument) else _complaint(name, since)
        raise FailedPrecondition(
            f"cannot attach {name}: {why}{remains}", reason="NOT_ATTACHED"
        ) from error
    if not args.quiet:
        print(
            f"{name} is mounted at {path}, now and at every boot: systemctl status {unit_of(name)}"
        )


def check_volume(server: str, volume: str) -> None:
    """Ask the server for the volume, so that what no retry of the unit mends is said at once.

    The unit waits for a server that does not answer. Raises ZfsiloError.
    """
    access = server_files.read(server)
    request = pb.GetVolumeRequest(name=resource(volume, "volumes"))
    try:
        remote = Server(server_files.channel_to(access), f"{server} ({access.address})", REACH_S)
        remote.ask("GetVolume", request)
    except NotFound as error:
        raise NotFound(
            f"server {server} has no volume {volume} for this host", volume=volume, server=server
        ) from error
    except (Unavailable, DeadlineExceeded):
        return


def _undo(args: Namespace, name: str) -> str:
    """Remove the file, the unit's links and what the unit had done; return what remains."""
    volume_files.path_of(name).unlink()
    Runner()(["systemctl", "disable", "--now", unit_of(name)], timeout_s=UNIT_S, ok=(0, 1))
    try:
        # systemd runs no ExecStop= of a unit that did not start.
        up.bring_down(Namespace(**vars(args) | {"quiet": True}), name, served=False)
    except ZfsiloError as error:
        return f"; it is not detached: {error.message}"
    return ""


def detach(args: Namespace) -> None:
    """Detach a volume, stop and disable the unit of the attachment, and remove its file."""
    check_real(args, "volume detach", "use volume unmount, unstage and disconnect")
    name = check_id(args.name, "volume name")
    file = volume_files.path_of(name)
    if not file.exists():
        raise NotFound(
            f"{name} is not attached: {file} does not exist; if it is connected: zfsiloctl down "
            f"{name}"
        )
    quiet = Namespace(**vars(args) | {"quiet": True})
    up.bring_down(quiet, name, served=False)  # refused while it is in use: unit and file stay
    run = Runner()
    run(["systemctl", "disable", "--now", unit_of(name)], timeout_s=UNIT_S)
    try:
        up.bring_down(quiet, name, served=False)  # a unit that was restarting may have raised it
    except ZfsiloError:
        run(["systemctl", "enable", unit_of(name)], timeout_s=UNIT_S)
        raise
    file.unlink()
    if not args.quiet:
        print(f"{name}: detached")


def content(args: Namespace, name: str, path: str) -> str:
    """Return the content of the file for these arguments."""
    values: dict[str, object] = {"server": args.server, "mount_path": path}
    if name != args.name:
        values["volume"] = check_id(args.name, "volume id")
    if args.fs_type:
        values["fs_type"] = args.fs_type
    if options := mount_options(args.option):
        values["mount_options"] = options
    if args.readonly:
        values["readonly"] = True
    if args.transport:
        values["transport"] = args.transport
    if args.tls:
        values["tls"] = True
    # Strings, lists of strings and booleans are written the same way in JSON and in TOML.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _complaint(name: str, since: int) -> str:
    """Return the last error of the unit's zfsiloctl, else the command that shows the journal.

    `_SYSTEMD_UNIT=` rather than `-u`, which adds systemd's own lines about the unit.
    """
    journal = Runner()(
        ["journalctl", f"_SYSTEMD_UNIT={unit_of(name)}", f"--since=@{since}", "--output=cat"],
        timeout_s=TOOL_S,
        ok=(0, 1),
    )
    errors = [line for line in journal.stdout.split("\n") if line.startswith(COMPLAINT)]
    command = f"journalctl -u {unit_of(name)}"
    return f"{errors[-1].removeprefix(COMPLAINT)} ({command})" if errors else command


def _check_same(args: Namespace, existing: VolumeFile, path: str) -> None:
    """Raise AlreadyExists when the arguments contradict the file; what they leave out is agreed."""
    options = mount_options(args.option)
    differences = {
        "path": existing.mount_path != path,
        "volume": existing.volume != args.name,
        "server": args.server not in (None, "", existing.server),
        "filesystem type": args.fs_type not in ("", existing.fs_type),
        "mount options": bool(options) and options != existing.mount_options,
        "access": args.readonly and not existing.readonly,
        "transport": args.transport not in (None, "", existing.transport),
        "use of TLS": args.tls and not existing.tls,
    }
    if names := [name for name, differs in differences.items() if differs]:
        *first, last = names
        listed = f"{', '.join(first)} and {last}" if first else last
        raise AlreadyExists(
            f"{existing.name} is attached with another {listed}, see "
            f"{volume_files.path_of(existing.name)}: edit it and run systemctl restart "
            f"{unit_of(existing.name)}",
            reason="ATTACHED",
        )


def _write(file: Path, text: str) -> None:
    """Write the file of a new attachment."""
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with file.open("x") as new:
            new.write(text)
    except FileExistsError:
        raise AlreadyExists(f"{file} was written just now; retry", reason="ATTACHED") from None
    except PermissionError as error:
        raise PermissionDenied(f"no access to {file}; use sudo", reason="NOT_ROOT") from error

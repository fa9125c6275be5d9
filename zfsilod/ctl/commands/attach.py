"""`zfsiloctl volume attach` and `detach`: a volume at a path, now and after every boot.

What is attached is written to /etc/zfsilo/volumes.d, and zfsilo-volume@NAME.service keeps it so.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from zfsilod.ctl import paths
from zfsilod.ctl.commands.attachment import mount_options, only_server
from zfsilod.ctl.commands.up import wish_for
from zfsilod.ctl.failures import COMPLAINT
from zfsilod.ctl.require_local import check_real
from zfsilod.host.run import Runner
from zfsilod.model.errors import (
    AlreadyExists,
    CommandFailed,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from zfsilod.model.validation import check_id

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

WHAT = "volumes are attached and detached"
TOOL_S = 30.0
UNIT_S = 360.0  # zfsilo-volume@ waits for its server for 300


def attach(given: Namespace) -> None:
    """Write down where a volume shall be, and start and enable its unit."""
    check_real(given, WHAT)
    name = check_id(given.local_name or given.name, "volume name")
    path = os.path.abspath(given.path)  # noqa: PTH100 - not resolved: links may come and go
    text = content(given, name, path)
    file = paths.etc() / "volumes.d" / f"{name}.toml"
    made, begun = _write(file, text), int(time.time())
    try:
        wish_for(name)
        Runner()(["systemctl", "enable", "--now", unit(name)], timeout_s=UNIT_S)
    except (CommandFailed, InvalidArgument) as error:
        if made:
            file.unlink()
            Runner()(["systemctl", "disable", "--now", unit(name)], timeout_s=UNIT_S, ok=(0, 1))
        why = error.message if isinstance(error, InvalidArgument) else _complaint(name, begun)
        raise FailedPrecondition(
            f"{name} was not attached: {why}", reason="NOT_ATTACHED"
        ) from error
    if not given.quiet:
        print(f"{name} is at {path}, and will be after every boot: systemctl status {unit(name)}")


def detach(given: Namespace) -> None:
    """Stop and disable a volume's unit, and forget where it was."""
    check_real(given, WHAT)
    name = check_id(given.name, "volume name")
    file = paths.etc() / "volumes.d" / f"{name}.toml"
    if not file.exists():
        raise NotFound(f"{name} was not attached by a file of volumes.d: zfsiloctl down {name}")
    Runner()(["systemctl", "disable", "--now", unit(name)], timeout_s=UNIT_S)
    file.unlink()
    if not given.quiet:
        print(f"{name}: detached")


def content(given: Namespace, name: str, path: str) -> str:
    """Return the file of volumes.d that says what was typed."""
    values: dict[str, object] = {"server": given.server or only_server(), "mount_path": path}
    if name != given.name:
        values["volume"] = check_id(given.name, "volume id")
    if given.fs_type:
        values["fs_type"] = given.fs_type
    if options := mount_options(given.option):
        values["mount_options"] = options
    if given.readonly:
        values["readonly"] = True
    # Texts, lists of texts and booleans look the same in JSON and in TOML.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def unit(name: str) -> str:
    """Return the unit that keeps a volume up."""
    return f"zfsilo-volume@{name}.service"


def _complaint(name: str, since: int) -> str:
    """Return what the unit's zfsiloctl said last, else where to look.

    Not by `-u`: that has systemd's own lines too, and the last one says only that it failed.
    """
    told = Runner()(
        ["journalctl", f"_SYSTEMD_UNIT={unit(name)}", f"--since=@{since}", "--output=cat"],
        timeout_s=TOOL_S,
        ok=(0, 1),
    )
    said = [line for line in told.stdout.splitlines() if line.startswith(COMPLAINT)]
    look = f"journalctl -u {unit(name)}"
    return f"{said[-1].removeprefix(COMPLAINT)} ({look})" if said else look


def _write(file: Path, text: str) -> bool:
    """Write the file, and tell whether it is new. Raises AlreadyExists when it says otherwise."""
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with file.open("x") as new:
            new.write(text)
        return True
    except FileExistsError:
        if file.read_text() != text:
            raise AlreadyExists(
                f"{file} is there and says otherwise: zfsiloctl volume detach {file.stem}",
                reason="ATTACHED",
            ) from None
        return False
    except PermissionError as error:
        raise PermissionDenied(f"{file} is for root only: use sudo", reason="NOT_ROOT") from error

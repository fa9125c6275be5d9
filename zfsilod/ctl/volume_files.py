"""Files of /etc/zfsilo/volumes.d: the attachments that zfsilo-volume@NAME.service maintains."""

from __future__ import annotations

import os

from zfsilod.ctl import paths
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.volume_file import STATES, VolumeFile, parse

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["STATES", "VolumeFile", "of_server", "path_of", "read", "unit_of"]


def path_of(name: str) -> Path:
    """Return the path of a volume's file."""
    return paths.etc() / "volumes.d" / f"{name}.toml"


def unit_of(name: str) -> str:
    """Return the unit that keeps a volume attached."""
    return f"zfsilo-volume@{name}.service"


def read(name: str) -> VolumeFile | None:
    """Read the file of a volume; None when there is none. Raises InvalidArgument."""
    if "/" in name:
        raise InvalidArgument(f"invalid volume name {name[:140]!r}", reason="BAD_ID")
    path = path_of(name)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8", reason="BAD_CONFIG") from error
    return parse(name, text, path)


def of_server(server: str) -> list[str]:
    """Return the names of the volumes of a server; invalid files are left out."""
    wishes = []
    for path in sorted(path_of("*").parent.glob("*.toml")):
        try:
            file = read(path.stem)
        except InvalidArgument:  # `status` says so
            continue
        wishes += [file.name] if file is not None and file.server == server else []
    return wishes

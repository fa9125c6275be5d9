"""The content of a file of /etc/zfsilo/volumes.d: an attachment that this host wants."""

from __future__ import annotations

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

TRANSPORTS = ("iscsi", "nvme")
STATES = ("connected", "staged", "mounted")
# key: (type, default)
KEYS: dict[str, tuple[type, Any]] = {
    "server": (str, ""),
    "volume": (str, ""),
    "state": (str, "mounted"),
    "mount_path": (str, ""),
    "fs_type": (str, ""),
    "mount_options": (list, []),
    "readonly": (bool, False),
    "transport": (str, ""),
    "tls": (bool, False),
}
TYPE_NAMES = {str: "a string", list: "a list of strings", bool: "true or false"}


class VolumeFile:
    """One file of volumes.d: where a volume comes from, and the state to bring it to."""

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.name = name
        self.server: str = values["server"]
        self.volume: str = values["volume"] or name
        self.state: str = values["state"].lower()
        self.mount_path: str = values["mount_path"]
        self.fs_type: str = values["fs_type"]
        self.mount_options: list[str] = values["mount_options"]
        self.readonly: bool = values["readonly"]
        self.transport: str = values["transport"]  # "": that of the volume
        self.tls: bool = values["tls"]


def parse(name: str, text: str, path: Path) -> VolumeFile:
    """Return the content of a file. Raises InvalidArgument with its path."""
    return VolumeFile(name, _checked(text, path))


def _checked(text: str, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _bad(path, str(error)) from error
    unknown = sorted(set(content) - set(KEYS))
    if unknown:
        raise _bad(path, f"unknown key {unknown[0]}; the keys are {', '.join(KEYS)}")
    for key, (kind, _default) in KEYS.items():
        if not isinstance(content.get(key, kind()), kind):
            raise _bad(path, f"{key} must be {TYPE_NAMES[kind]}")
    values = {key: default for key, (_kind, default) in KEYS.items()} | content
    if not all(isinstance(option, str) for option in values["mount_options"]):
        raise _bad(path, "mount_options must be a list of strings")
    if not values["server"]:
        raise _bad(path, "server is missing; set it to a name from zfsiloctl server list")
    if values["state"].lower() not in STATES:
        raise _bad(path, f"state must be one of {', '.join(STATES)}")
    if values["transport"] not in ("", *TRANSPORTS):
        raise _bad(path, f"transport must be one of {', '.join(TRANSPORTS)}")
    if values["state"].lower() == "mounted" and not values["mount_path"]:
        raise _bad(path, 'mount_path is missing; set it, or set state = "staged"')
    return values


def _bad(path: Path, complaint: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {complaint}", reason="BAD_CONFIG")

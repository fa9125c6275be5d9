"""The configuration: one file, the same for controller and nodes. Whatever is odd refuses to start.

driver = "csi.zfsilo.io"
[backends.give]
join = "/etc/zfsilo-csi/backends/give.join"
zones = ["hall-1"]
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from zfsilo_csi.ids import BACKEND

if TYPE_CHECKING:
    from pathlib import Path

DRIVER = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
ZONE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """The configuration is not right; the text says where, and what would be."""


class BackendConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[backends.NAME]: a storage host. The name is part of volume ids, so it never changes."""

    join: str = ""  # a file that `zfsiloctl pki issue user NAME --role controller` made there
    socket: str = ""  # or the socket of a zfsilod on this machine
    zones: list[str] = msgspec.field(default_factory=lambda: ["default"])
    server: str = ""  # what the nodes' zfsilod calls it; "": as we do


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[node]: where the zfsilod of the node is reached."""

    socket: str = "/run/zfsilo/csi/zfsilod.sock"


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """All of it."""

    executor: str = "csi.zfsilo.io"
    endpoint: str = "unix:///csi/csi.sock"
    metrics: str = ""  # ADDRESS:PORT; "": none
    log_level: str = "info"
    node: NodeConfig = msgspec.field(default_factory=NodeConfig)
    backends: dict[str, BackendConfig] = msgspec.field(default_factory=dict)


def load(path: Path) -> Config:
    """Read and check the configuration. Raises ConfigError."""
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Config)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    for right, complaint in _checks(found):
        if not right:
            raise ConfigError(f"{path}: {complaint}")
    return found


def _checks(found: Config) -> list[tuple[bool, str]]:
    checks = [
        (bool(DRIVER.fullmatch(found.executor)), "driver is no domain name"),
        (found.endpoint.startswith("unix:"), "endpoint is not unix:PATH"),
        (found.log_level in LEVELS, f"log_level is none of {', '.join(LEVELS)}"),
        (bool(found.backends), "there is no [backends.NAME]: no storage host is known"),
    ]
    for name, each in found.backends.items():
        checks += [
            (bool(BACKEND.fullmatch(name)), f"the backend {name!r} has no name of a-z 0-9 -"),
            (bool(each.join) != bool(each.socket), f"backends.{name}: either join, or socket"),
            (bool(each.zones), f"backends.{name}.zones is empty: no node could reach it"),
            (all(map(ZONE.fullmatch, each.zones)), f"backends.{name}.zones: no label value"),
        ]
    return checks

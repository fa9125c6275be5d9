"""The plugin's configuration: one TOML file for controller and nodes; unknown keys are refused.

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
    from collections.abc import Iterator
    from pathlib import Path

DRIVER = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
ZONE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """Invalid configuration; the message names the file and the key."""


class BackendConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[backends.NAME]: a server. NAME is part of volume ids, so it must never change."""

    join: str = ""  # file made on the server by `zfsiloctl pki issue user NAME --role controller`
    socket: str = ""  # or the socket of a zfsilod on this machine
    zones: list[str] = msgspec.field(default_factory=lambda: ["default"])
    server: str = ""  # name of the server in the nodes' servers.d; "": the same name


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[node]: the zfsilod of the node."""

    socket: str = "/run/zfsilo/csi/zfsilod.sock"


class PluginConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    driver: str = "csi.zfsilo.io"
    endpoint: str = "unix:///csi/csi.sock"
    metrics: str = ""  # ADDRESS:PORT; :PORT: at all addresses, of both families; "": none
    log_level: str = "info"
    node: NodeConfig = msgspec.field(default_factory=NodeConfig)
    backends: dict[str, BackendConfig] = msgspec.field(default_factory=dict)


def load(path: Path) -> PluginConfig:
    """Read and check the configuration. Raises ConfigError."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=PluginConfig)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    for problem in _problems(config):
        raise ConfigError(f"{path}: {problem}")
    return config


def _problems(config: PluginConfig) -> Iterator[str]:
    if not DRIVER.fullmatch(config.driver):
        yield f"driver {config.driver!r} is not a domain name of at most 63 characters"
    if not config.endpoint.startswith("unix:"):
        yield f"endpoint {config.endpoint!r} does not have the form unix:PATH"
    if config.log_level not in LEVELS:
        yield f"log_level {config.log_level!r} is invalid; use one of {', '.join(LEVELS)}"
    if not config.backends:
        yield "no [backends.NAME] section; add one for every server"
    for name, backend in config.backends.items():
        if not BACKEND.fullmatch(name):
            yield f"backend name {name!r} is invalid; use at most 32 characters of a-z, 0-9 and -"
        if bool(backend.join) == bool(backend.socket):
            yield f"backends.{name}: set exactly one of join and socket"
        if not backend.zones:
            yield f"backends.{name}.zones is empty; name at least one zone whose nodes can reach it"
        if not all(map(ZONE.fullmatch, backend.zones)):
            yield f"backends.{name}.zones: every zone must be a valid Kubernetes label value"

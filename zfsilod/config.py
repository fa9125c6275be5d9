"""The configuration: /etc/zfsilo/zfsilod.toml and zfsilod.toml.d/*.toml, with a default for all.

Whatever is not understood refuses to start, and says where it stands and what would be right.
The README's table of keys is compared with these classes by a test.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import msgspec
import tomli

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.names import DATASET, IQN_PREFIX, MAX_PREFIX, is_portal
from zfsilod.model.settings import Export, Settings
from zfsilod.model.validation import ID
from zfsilod.security.join_file import Access, parse_join

DIRECTORY = Path("/etc/zfsilo")
ZONE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class ServerConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[server]: this host as a storage host."""

    root: str = ""
    portals: list[str] = msgspec.field(default_factory=lambda: ["0.0.0.0:3260"])
    iqn_prefix: str = ""
    overcommit: float = 10.0
    reserve: float = 0.05
    reserve_warning: float = 0.1
    volblocksize: int = 16384
    trash_retention_s: int = 0


class Store(msgspec.Struct, forbid_unknown_fields=True):
    """[store]: where and how large."""

    size_bytes: int = 1 << 30


class Operations(msgspec.Struct, forbid_unknown_fields=True):
    """[operations]: limits of what runs."""

    timeout_s: int = 300
    retention_s: int = 7 * 24 * 3600


class Sync(msgspec.Struct, forbid_unknown_fields=True):
    """[sync]: how often the host is compared with the records, and repaired."""

    interval_s: int = 600


class Daemon(msgspec.Struct, forbid_unknown_fields=True):
    """[daemon]: the process itself."""

    host_id: str = ""
    idle_exit_s: int = 0
    max_connections: int = 1000
    log_level: str = "info"


class Csi(msgspec.Struct, forbid_unknown_fields=True):
    """[csi]: what the socket for Kubernetes may do."""

    allowed_paths: list[str] = msgspec.field(default_factory=lambda: ["/var/lib/kubelet"])
    max_attachments: int = 0
    zone: str = "default"


class Metrics(msgspec.Struct, forbid_unknown_fields=True):
    """[metrics]: what Prometheus is told."""

    volumes: int = 1000


class Tls(msgspec.Struct, forbid_unknown_fields=True):
    """[tls]: who is believed over the network."""

    imported_roles: list[str] = msgspec.field(default_factory=lambda: ["host"])


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """All of it."""

    server: ServerConfig = msgspec.field(default_factory=ServerConfig)
    store: Store = msgspec.field(default_factory=Store)
    operations: Operations = msgspec.field(default_factory=Operations)
    sync: Sync = msgspec.field(default_factory=Sync)
    daemon: Daemon = msgspec.field(default_factory=Daemon)
    metrics: Metrics = msgspec.field(default_factory=Metrics)
    csi: Csi = msgspec.field(default_factory=Csi)
    tls: Tls = msgspec.field(default_factory=Tls)

    @property
    def settings(self) -> Settings:
        """Return what plans need of it."""
        host_id = self.daemon.host_id
        # Initiators may send the name of a target in lower case only: RFC 3720, 3.2.6.1.
        prefix = self.server.iqn_prefix.lower() or f"iqn.2026-01.org.zfsilo:{host_id}"
        return Settings(
            host_id=host_id,
            root=self.server.root,
            export=Export(prefix=prefix, portals=tuple(self.server.portals)),
            overcommit=self.server.overcommit,
            volblocksize=self.server.volblocksize,
            node_paths=tuple(self.csi.allowed_paths),
            zone=self.csi.zone,
            max_attachments=self.csi.max_attachments,
            reserve=self.server.reserve,
            reserve_warning=self.server.reserve_warning,
            trash_retention_s=self.server.trash_retention_s,
        )


def load(directory: Path = DIRECTORY) -> Config:
    """Read and check the configuration. Raises InvalidArgument naming file, key and remedy."""
    merged: dict[str, Any] = {}
    main = directory / "zfsilod.toml"
    for path in (main, *sorted((directory / "zfsilod.toml.d").glob("*.toml"))):
        if path == main and not path.exists():
            continue
        _merge(merged, _check_file(path))
    config = _convert(merged, main)
    for path in sorted((directory / "servers.d").glob("*.toml")):
        _server(path)
    if not config.daemon.host_id:
        config.daemon.host_id = host_id_of(socket.gethostname())
    _check(config, main)
    return config


def find_server(directory: Path, name: str) -> Access | None:
    """Read the file of a server, which `zfsiloctl join` may have written just now."""
    path = directory / "servers.d" / f"{name}.toml"
    return _server(path) if ID.fullmatch(name) and path.exists() else None


def server_certificates(directory: Path) -> dict[str, str]:
    """Return our certificates for the servers in servers.d, by their names."""
    paths = sorted((directory / "servers.d").glob("*.toml"))
    found = {path.stem: _server(path).certificate for path in paths}
    return {name: pem for name, pem in found.items() if pem}


def host_id_of(name: str) -> str:
    """Return a host name's first label as an id."""
    return re.sub(r"[^a-z0-9-]+", "-", name.partition(".")[0].lower()).strip("-") or "host"


def _check_file(path: Path) -> dict[str, Any]:
    """Read one file, and convert it alone, so that an error names the file it is in."""
    found = _parse(path)
    _convert(found, path)
    return found


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(path.read_text())
    except tomli.TOMLDecodeError as error:
        raise InvalidArgument(f"{path}: {error}", reason="BAD_CONFIG") from error
    except OSError as error:
        raise InvalidArgument(
            f"{path} cannot be read: {os.strerror(error.errno or 0)}", reason="BAD_CONFIG"
        ) from error


def _convert(found: dict[str, Any], path: Path) -> Config:
    try:
        return msgspec.convert(found, Config)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{path}: {_in_words(error)}", reason="BAD_CONFIG") from error


def _in_words(error: msgspec.ValidationError) -> str:
    """Return msgspec's complaint with the key in front, and a hint for an unknown one."""
    text, _at, where = str(error).partition(" - at `$")
    key = where.strip("`.")
    if "unknown field" in text:
        unknown = text.rpartition("field ")[2].strip("`")
        table = f"[{key}]" if key else "the file"
        return f"{table} has no key {unknown}: see the keys in zfsilod.toml(5)"
    return f"{key}: {text[:1].lower()}{text[1:]}" if key else text


def _server(path: Path) -> Access:
    if path.stat().st_mode & 0o077:
        raise InvalidArgument(
            f"{path} holds a secret and is readable by others: chmod 600 {path}",
            reason="BAD_CONFIG",
        )
    try:
        return parse_join(path.read_text(), path.stem)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}", reason="BAD_CONFIG") from None


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _check(config: Config, path: Path) -> None:
    """Refuse impossible values, each with its key."""
    server = config.server
    checks: list[tuple[bool, str]] = [
        (bool(ID.fullmatch(config.daemon.host_id)), "daemon.host_id is no id (a-z 0-9 . _ -)"),
        (not server.root or bool(DATASET.fullmatch(server.root)), "server.root is no dataset name"),
        (
            not server.iqn_prefix
            or bool(
                IQN_PREFIX.fullmatch(server.iqn_prefix) and len(server.iqn_prefix) <= MAX_PREFIX
            ),
            "server.iqn_prefix is no IQN: iqn.2026-01.org.example:storage",
        ),
        (
            bool(server.portals) and all(map(is_portal, server.portals)),
            "server.portals: no ADDRESS:PORT",
        ),
        (server.overcommit >= 1, "server.overcommit is below 1"),
        (0 <= server.reserve <= 0.5, "server.reserve: 0 to 0.5"),
        (
            server.reserve <= server.reserve_warning <= 1,
            "server.reserve_warning: server.reserve to 1",
        ),
        (
            server.volblocksize in [1 << n for n in range(9, 18)],
            "server.volblocksize: 512 to 131072",
        ),
        (server.trash_retention_s >= 0, "server.trash_retention_s is negative"),
        (1 << 20 <= config.store.size_bytes <= 1 << 40, "store.size_bytes: 1 MiB to 1 TiB"),
        (10 <= config.operations.timeout_s <= 86400, "operations.timeout_s: 10 to 86400"),
        (config.operations.retention_s >= 0, "operations.retention_s is negative"),
        (config.sync.interval_s >= 0, "sync.interval_s is negative"),
        (config.daemon.idle_exit_s >= 0, "daemon.idle_exit_s is negative"),
        (1 <= config.daemon.max_connections <= 100_000, "daemon.max_connections: 1 to 100000"),
        (set(config.tls.imported_roles) <= set(ROLES), f"tls.imported_roles: {', '.join(ROLES)}"),
        (all(map(is_folder, config.csi.allowed_paths)), "csi.allowed_paths: absolute, not / or .."),
        (config.metrics.volumes >= 0, "metrics.volumes is negative"),
        (
            0 <= config.csi.max_attachments <= 1 << 20,
            "csi.max_attachments: 0 (no limit) to 1048576",
        ),
        (bool(ZONE.fullmatch(config.csi.zone)), "csi.zone is no value of a Kubernetes label"),
        (config.daemon.log_level in LEVELS, f"daemon.log_level is none of {', '.join(LEVELS)}"),
    ]
    for right, complaint in checks:
        if not right:
            raise InvalidArgument(f"{path}: {complaint}", reason="BAD_CONFIG")


ROLES = ("host", "controller", "reader", "admin")
LEVELS = ("debug", "info", "warning", "error")


def is_folder(path: str) -> bool:
    """Tell whether a path can be one below which others are allowed: never the root itself."""
    parts = path.split("/")
    return parts[0] == "" and any(parts) and not {".", ".."} & set(parts)

"""Configuration: /etc/zfsilo/zfsilod.toml and zfsilod.toml.d/*.toml; every key has a default.

An unknown key or an invalid value is an error that names the file and the key. A test compares
these classes with the documented table of keys.
"""

from __future__ import annotations

import os
import re
import socket
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import tomli

from zfsilod.engine.configuration import (
    DEFAULT_NVME_PORTALS,
    DEFAULT_NVME_TLS_PORT,
    DEFAULT_PATHS,
    DEFAULT_PORTALS,
    DEFAULT_PREFIX,
    check_folders,
    check_owner,
    files,
)
from zfsilod.host.portals import canonical
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.host_facts import CONTROLLER_IDS
from zfsilod.model.name_patterns import target_prefix
from zfsilod.model.names import ANY_IPV4, is_dataset, is_portal, overlap, portal_parts
from zfsilod.model.settings import Export, Settings
from zfsilod.model.validation import BLOCK_SIZES, ID
from zfsilod.security import kept_identity
from zfsilod.security.join_file import Access, parse_join
from zfsilod.security.kept_identity import IdentityChange, KeptIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = Path("/etc/zfsilo")
ROLES = ("host", "controller", "reader", "admin")  # that an imported authority may certify
LEVELS = ("debug", "info", "warning", "error")
ANY = {ANY_IPV4, "::"}  # the wildcard of each family
ZONE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class ServerConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[server]: this host as a server."""

    root: str = ""
    portals: list[str] = msgspec.field(default_factory=lambda: [*DEFAULT_PORTALS])
    nvme_portals: list[str] = msgspec.field(default_factory=lambda: [*DEFAULT_NVME_PORTALS])
    nvme_tls_port: int = DEFAULT_NVME_TLS_PORT
    nvme_cntlid_min: int = CONTROLLER_IDS[0]
    nvme_cntlid_max: int = CONTROLLER_IDS[1]
    iqn_prefix: str = ""
    adopt_from: list[str] = msgspec.field(default_factory=list)
    former_prefixes: list[str] = msgspec.field(default_factory=list)
    overcommit: float = 10.0
    reserve: float = 0.05
    reserve_warning: float = 0.1
    volblocksize: int = 16384
    trash_retention_s: int = 0


class ClientConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[client]: this host as a client."""

    lost_session_s: int = 0


class StoreConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[store]: the size of the store."""

    size_bytes: int = 1 << 30


class OperationsConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[operations]: limits of operations."""

    timeout_s: int = 300
    retention_s: int = 7 * 24 * 3600


class SyncConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[sync]: how often the host is compared with the records and repaired."""

    interval_s: int = 600


class DaemonConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[daemon]: the process."""

    host_id: str = ""
    idle_exit_s: int = 0
    max_connections: int = 1000
    max_calls: int = 256
    log_level: str = "info"


class CsiConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[csi]: limits of the socket for Kubernetes."""

    allowed_paths: list[str] = msgspec.field(default_factory=lambda: [*DEFAULT_PATHS])
    max_attachments: int = 0
    zone: str = "default"


class MetricsConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[metrics]: limits of the metrics."""

    volumes: int = 1000


class TlsConfig(msgspec.Struct, forbid_unknown_fields=True):
    """[tls]: identities accepted over the network."""

    imported_roles: list[str] = msgspec.field(default_factory=lambda: ["host"])


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """The whole configuration."""

    server: ServerConfig = msgspec.field(default_factory=ServerConfig)
    client: ClientConfig = msgspec.field(default_factory=ClientConfig)
    store: StoreConfig = msgspec.field(default_factory=StoreConfig)
    operations: OperationsConfig = msgspec.field(default_factory=OperationsConfig)
    sync: SyncConfig = msgspec.field(default_factory=SyncConfig)
    daemon: DaemonConfig = msgspec.field(default_factory=DaemonConfig)
    metrics: MetricsConfig = msgspec.field(default_factory=MetricsConfig)
    csi: CsiConfig = msgspec.field(default_factory=CsiConfig)
    tls: TlsConfig = msgspec.field(default_factory=TlsConfig)

    @property
    def settings(self) -> Settings:
        """Return the part that plans depend on."""
        host_id = self.daemon.host_id
        configured = self.server.iqn_prefix
        prefix = target_prefix(configured) if configured else f"{DEFAULT_PREFIX}{host_id}"
        portals, nvme_portals = (
            tuple(canonical(listed)) for listed in (self.server.portals, self.server.nvme_portals)
        )
        return Settings(
            host_id=host_id,
            root=self.server.root,
            adopt_from=tuple(self.server.adopt_from),
            export=Export(
                prefix=prefix,
                portals=portals,
                nvme_portals=nvme_portals,
                nvme_tls_port=self.server.nvme_tls_port,
                nvme_cntlid_min=self.server.nvme_cntlid_min,
                nvme_cntlid_max=self.server.nvme_cntlid_max,
            ),
            overcommit=self.server.overcommit,
            volblocksize=self.server.volblocksize,
            node_paths=tuple(self.csi.allowed_paths),
            zone=self.csi.zone,
            max_attachments=self.csi.max_attachments,
            reserve=self.server.reserve,
            reserve_warning=self.server.reserve_warning,
            trash_retention_s=self.server.trash_retention_s,
            lost_session_s=self.client.lost_session_s,
        )


def load(directory: Path = DIRECTORY, state: Path | None = None) -> Config:
    """Read and check the configuration. Raises InvalidArgument with the file and the key.

    `state`: the directory with the kept host id, which comes before the host name.
    Raises FailedPrecondition when others than root may write it: no worker would use it.
    """
    config, main = _read(directory), directory / "zfsilod.toml"
    for path in sorted((directory / "servers.d").glob("*.toml")):
        _server(path)
    if not config.daemon.host_id:
        kept = kept_identity.read(state) if state is not None else None
        config.daemon.host_id = kept.host_id if kept else host_id_of(socket.gethostname())
    for valid, complaint in (*_server_checks(config.server), *_other_checks(config)):
        if not valid:
            raise InvalidArgument(f"{main}: {complaint}", reason="BAD_CONFIG")
    return config


def _read(directory: Path) -> Config:
    """Return the configured values, without a host id if the files have none."""
    merged: dict[str, Any] = {}
    main, paths = directory / "zfsilod.toml", [Path(path) for path in files(directory)]
    if os.geteuid() == 0:  # otherwise the host is simulated
        check_folders(directory)
        for path in filter(Path.exists, paths):
            check_owner(path.stat(), path)
    for path in paths:
        content = _parse(path)
        _convert(content, path)  # by itself, so that an error names this file
        _merge(merged, content)
    return _convert(merged, main)


def identity(settings: Settings, initiator: str, nqn: str) -> KeptIdentity:
    """Return the present identity of this host."""
    return KeptIdentity(
        host_id=settings.host_id,
        prefix=settings.export.prefix,
        initiator=initiator,
        nqn=nqn,
    )


def identity_changes(
    directory: Path, state: Path, initiator: str, nqn: str
) -> list[IdentityChange]:
    """Return what differs from the identity that this host had at its first start."""
    kept = kept_identity.read(state)
    if kept is None:
        return []
    return kept_identity.changes(
        kept,
        identity(load(directory, state).settings, initiator, nqn),
        host_id_of(socket.gethostname()),
        state,
        is_set=bool(_read(directory).daemon.host_id),
    )


def find_server(directory: Path, name: str) -> Access | None:
    """Read the file of a server, at each call: `zfsiloctl join` may have written it since."""
    path = directory / "servers.d" / f"{name}.toml"
    return _server(path) if ID.fullmatch(name) and path.exists() else None


def server_certificates(directory: Path) -> dict[str, str]:
    """Return this host's certificates for the servers in servers.d, by server."""
    paths = sorted((directory / "servers.d").glob("*.toml"))
    certificates = {path.stem: _server(path).certificate for path in paths}
    return {name: pem for name, pem in certificates.items() if pem}


def host_id_of(name: str) -> str:
    """Return the first label of a host name as an id."""
    return re.sub(r"[^a-z0-9-]+", "-", name.partition(".")[0].lower()).strip("-") or "host"


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(path.read_text())
    except tomli.TOMLDecodeError as error:
        raise InvalidArgument(f"{path}: {error}", reason="BAD_CONFIG") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8", reason="BAD_CONFIG") from error
    except OSError as error:
        raise InvalidArgument(
            f"{path} cannot be read: {os.strerror(error.errno or 0)}", reason="BAD_CONFIG"
        ) from error


def _convert(content: dict[str, Any], path: Path) -> Config:
    try:
        return msgspec.convert(content, Config)
    except msgspec.ValidationError as error:
        # The message ends with the place of the value; the key belongs in front.
        text, _at, where = str(error).partition(" - at `$")
        key = where.strip("`.")
        if "unknown field" in text:
            table = f"[{key}]" if key else "the file"
            unknown = text.rpartition("field ")[2].strip("`")
            text = f"{table} has no key {unknown}; see zfsilod.toml(5)"
        elif key:
            text = f"{key}: {text[:1].lower()}{text[1:]}"
        raise InvalidArgument(f"{path}: {text}", reason="BAD_CONFIG") from error


def _server(path: Path) -> Access:
    if path.stat().st_mode & 0o077:
        raise InvalidArgument(
            f"{path} has a secret and is readable by others; run chmod 600 {path}",
            reason="BAD_CONFIG",
        )
    try:
        return parse_join(path.read_text(), path.stem)
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not UTF-8", reason="BAD_CONFIG") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}", reason="BAD_CONFIG") from None


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _server_checks(server: ServerConfig) -> tuple[tuple[bool, str], ...]:
    prefix = server.iqn_prefix
    no_dataset = next((name for name in server.adopt_from if not is_dataset(name)), None)
    former = [one for one in server.former_prefixes if not _is_prefix(one)]
    wrong = {
        key: next((portal for portal in portals if not is_portal(portal)), None)
        for key, portals in (("portals", server.portals), ("nvme_portals", server.nvme_portals))
    }
    taken = next(_taken(server), None) if not any(wrong.values()) else None
    used = {
        portal_parts(portal)[1]
        for portal in (*server.portals, *server.nvme_portals)
        if is_portal(portal)
    }
    return (
        (
            not server.root or is_dataset(server.root),
            f"server.root: {server.root!r} is not the name of a dataset",
        ),
        (
            no_dataset is None,
            f"server.adopt_from: {no_dataset!r} is not the name of a dataset",
        ),
        (
            not prefix or _is_prefix(prefix),
            f"server.iqn_prefix: {prefix!r} is not an IQN; use iqn.2026-01.org.example:storage",
        ),
        (not former, f"server.former_prefixes: {', '.join(former)!r} is not an IQN"),
        (bool(server.portals), "server.portals: at least one ADDRESS:PORT is needed"),
        (bool(server.nvme_portals), "server.nvme_portals: at least one ADDRESS:PORT is needed"),
        *(
            (portal is None, f"server.{key}: {portal!r} is not ADDRESS:PORT")
            for key, portal in wrong.items()
        ),
        (taken is None, f"{taken}: the kernel listens at one of them only"),
        (
            0 < server.nvme_tls_port < 65536 and server.nvme_tls_port not in used,
            f"server.nvme_tls_port: {server.nvme_tls_port} is not a port, or that of other portals",
        ),
        (
            CONTROLLER_IDS[0] <= server.nvme_cntlid_min < server.nvme_cntlid_max,
            f"server.nvme_cntlid_min: {CONTROLLER_IDS[0]} or more, and less than nvme_cntlid_max",
        ),
        (
            server.nvme_cntlid_max <= CONTROLLER_IDS[1],
            f"server.nvme_cntlid_max: {CONTROLLER_IDS[1]} or less",
        ),
        (server.overcommit >= 1, "server.overcommit: 1 or more"),
        (0 <= server.reserve <= 0.5, "server.reserve: 0 to 0.5"),
        (
            server.reserve <= server.reserve_warning <= 1,
            "server.reserve_warning: server.reserve to 1",
        ),
        (
            server.volblocksize in BLOCK_SIZES,
            "server.volblocksize: a power of two from 512 to 131072",
        ),
        (server.trash_retention_s >= 0, "server.trash_retention_s: 0 or more"),
    )


def _taken(server: ServerConfig) -> Iterator[str]:
    """Yield the portals that cannot be listened at beside each other, for an error.

    Both wildcards may be in one list: targets of one transport share the socket of "::".
    """
    iscsi, nvme = map(canonical, (server.portals, server.nvme_portals))
    for one, other in product(iscsi, nvme):
        if overlap(one, other):
            yield f"server.portals and server.nvme_portals: {one} and {other}"
    for key, portals in (("portals", iscsi), ("nvme_portals", nvme)):
        for one, other in combinations(portals, 2):
            if overlap(one, other) and not {portal_parts(one)[0], portal_parts(other)[0]} <= ANY:
                yield f"server.{key}: {one} and {other}"


def _is_prefix(text: str) -> bool:
    try:
        target_prefix(text)
    except InvalidArgument:
        return False
    return True


def _other_checks(config: Config) -> tuple[tuple[bool, str], ...]:
    daemon, csi, lost_session_s = config.daemon, config.csi, config.client.lost_session_s
    return (
        (
            bool(ID.fullmatch(daemon.host_id)),
            f"daemon.host_id: {daemon.host_id!r} is not an id; use a-z 0-9 . _ -",
        ),
        (
            lost_session_s == 0 or 10 <= lost_session_s <= 2592000,
            "client.lost_session_s: 0 (no limit), or 10 to 2592000",
        ),
        (1 << 20 <= config.store.size_bytes <= 1 << 40, "store.size_bytes: 1 MiB to 1 TiB"),
        (10 <= config.operations.timeout_s <= 86400, "operations.timeout_s: 10 to 86400"),
        (config.operations.retention_s >= 0, "operations.retention_s: 0 or more"),
        (config.sync.interval_s >= 0, "sync.interval_s: 0 or more"),
        (daemon.idle_exit_s >= 0, "daemon.idle_exit_s: 0 or more"),
        (8 <= daemon.max_calls <= 100_000, "daemon.max_calls: 8 to 100000"),
        (1 <= daemon.max_connections <= 100_000, "daemon.max_connections: 1 to 100000"),
        (daemon.log_level in LEVELS, f"daemon.log_level: one of {', '.join(LEVELS)}"),
        (
            set(config.tls.imported_roles) <= set(ROLES),
            f"tls.imported_roles: any of {', '.join(ROLES)}",
        ),
        (
            all(map(is_folder, csi.allowed_paths)),
            "csi.allowed_paths: absolute paths without .., and not /",
        ),
        (0 <= csi.max_attachments <= 1 << 20, "csi.max_attachments: 0 (no limit) to 1048576"),
        (bool(ZONE.fullmatch(csi.zone)), f"csi.zone: {csi.zone!r} is not a Kubernetes label value"),
        (config.metrics.volumes >= 0, "metrics.volumes: 0 or more"),
    )


def is_folder(path: str) -> bool:
    """Tell whether a path may be one of csi.allowed_paths: not the root, and without ".."."""
    parts = path.split("/")
    return parts[0] == "" and any(parts) and not {".", ".."} & set(parts)

"""Channels to zfsilod: the local socket, or TLS as the controller of a join file."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from zfsilo_csi.config import ConfigError

if TYPE_CHECKING:
    from zfsilo_csi.config import BackendConfig

log = logging.getLogger("zfsilo_csi")
WANTED = ("address", "tls_name", "authority", "certificate", "key")
OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)


def local(path: str) -> Any:
    """Return a channel to a zfsilod of this machine."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)


def remote(config: BackendConfig) -> Any:
    """Return a channel to a storage host. Raises ConfigError."""
    return local(config.socket) if config.socket else Joined(Path(config.join))


class Joined:
    """A channel over TLS, made anew when the join file changes: its certificate was renewed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _look(path)
        self._channel = _secure(_read(path))

    def unary_unary(self, method: str, **how: Any) -> Any:
        """Return a method, which uses the join file of the moment when it is called."""

        def call(request: Any, *, timeout: float) -> Any:
            return self._now().unary_unary(method, **how)(request, timeout=timeout)

        return call

    async def close(self) -> None:
        """Close it."""
        await self._channel.close()

    def _now(self) -> Any:
        seen = _look(self._path)
        if seen != self._seen:
            self._seen = seen
            try:
                found = _read(self._path)
            except ConfigError as error:
                log.warning("%s; what it said before is used", error)
            else:
                self._channel = _secure(found)  # calls that run keep the old one alive
        return self._channel


def _look(path: Path) -> tuple[int, int, int]:
    """Return what tells a file from the one that was there before; kubelet renames a new one in."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size


def _secure(found: dict[str, str]) -> Any:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=found["authority"].encode(), private_key=found["key"].encode(),
        certificate_chain=found["certificate"].encode(),
    )  # fmt: skip
    options = (*OPTIONS, ("grpc.ssl_target_name_override", found["tls_name"]))
    return grpc.aio.secure_channel(found["address"], credentials, options=options)


def _read(path: Path) -> dict[str, str]:
    """Read a join file. What is wrong with it is never quoted: it holds a key."""
    try:
        found = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"the join file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(f"the join file {path} is no TOML") from None
    if not all(isinstance(found.get(name), str) for name in WANTED):
        raise ConfigError(f"the join file {path} does not have all of {', '.join(WANTED)}")
    return found

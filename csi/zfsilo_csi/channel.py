"""gRPC channels to zfsilod: over a local socket, or over TLS with a join file."""

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
JOIN_KEYS = ("address", "tls_name", "authority", "certificate", "key")
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
    """Return a channel to a backend. Raises ConfigError."""
    return local(config.socket) if config.socket else JoinedChannel(Path(config.join))


class JoinedChannel:
    """A TLS channel that is replaced when its join file changes, as after a renewal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _version(path)
        self._channel = _secure(_read(path))

    def unary_unary(self, method: str, **options: Any) -> Any:
        """Return a callable for a method; every call uses the current join file."""

        def call(request: Any, *, timeout: float) -> Any:
            return self._current().unary_unary(method, **options)(request, timeout=timeout)

        return call

    def unary_stream(self, method: str, **options: Any) -> Any:
        """Return a callable for a method with a stream of responses, as unary_unary does."""

        def call(request: Any, *, timeout: float | None) -> Any:
            return self._current().unary_stream(method, **options)(request, timeout=timeout)

        return call

    async def close(self) -> None:
        """Close the current channel."""
        await self._channel.close()

    def _current(self) -> Any:
        version = _version(self._path)
        if version != self._version:
            self._version = version
            try:
                join = _read(self._path)
            except ConfigError as error:
                log.warning("%s; the previous credentials stay in use", error)
            else:
                self._channel = _secure(join)  # running calls keep the old one alive
        return self._channel


def _version(path: Path) -> tuple[int, int, int]:
    """Return inode, mtime and size: kubelet renames a new file into place."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def _secure(join: dict[str, str]) -> Any:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=join["authority"].encode(),
        private_key=join["key"].encode(),
        certificate_chain=join["certificate"].encode(),
    )
    options = (*OPTIONS, ("grpc.ssl_target_name_override", join["tls_name"]))
    return grpc.aio.secure_channel(join["address"], credentials, options=options)


def _read(path: Path) -> dict[str, str]:
    """Read a join file. Errors never quote its content, because it holds a private key."""
    try:
        join = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read join file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(
            f"join file {path} is not valid TOML; make it with `zfsiloctl pki issue`"
        ) from None
    missing = [key for key in JOIN_KEYS if not isinstance(join.get(key), str)]
    if missing:
        raise ConfigError(
            f"join file {path} has no {', '.join(missing)}; make it with `zfsiloctl pki issue`"
        )
    return join

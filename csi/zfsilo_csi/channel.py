"""Channels to zfsilod: the local socket, or TLS as the controller of a join file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from zfsilo_csi.config import ConfigError

if TYPE_CHECKING:
    from zfsilo_csi.config import BackendConfig

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
    if config.socket:
        return local(config.socket)
    found = _read(Path(config.join))
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

"""Channels to zfsilod: the local socket, or TLS with the certificate that the daemon must show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from zfsilo_csi.config import BackendConfig

PINNED_NAME = "zfsilo"  # in every certificate of a zfsilod; which one it is, the pin says
OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)


def local(path: str) -> Any:
    """Return a channel to the zfsilod of this host."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)


def remote(config: BackendConfig) -> Any:
    """Return a channel to a storage host."""
    if config.address.startswith("unix:"):
        return local(config.address.removeprefix("unix:"))
    trusted = grpc.ssl_channel_credentials(Path(config.certificate).read_bytes())
    token = grpc.access_token_call_credentials(Path(config.token).read_text().strip())
    # grpc sends a token over TLS only, by itself.
    credentials = grpc.composite_channel_credentials(trusted, token)
    options = (*OPTIONS, ("grpc.ssl_target_name_override", PINNED_NAME))
    return grpc.aio.secure_channel(config.address, credentials, options=options)

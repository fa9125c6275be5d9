"""Channels to a zfsilod: over its unix socket, or over TLS with its one certificate and a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from zfsilod.certs import PINNED_NAME

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
)


def unix_channel(path: Path) -> Any:
    """Return a blocking channel to the zfsilod of this host."""
    return grpc.insecure_channel(f"unix:{path}", options=OPTIONS)


def unix_channel_aio(path: Path) -> Any:
    """Return an asyncio channel to the zfsilod of this host."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)


def tls_channel(address: str, certificate_pem: str, token: str) -> Any:
    """Return a blocking channel to HOST:PORT, which must show exactly this certificate."""
    return grpc.secure_channel(address, _credentials(certificate_pem, token), options=_pinned())


def tls_channel_aio(address: str, certificate_pem: str, token: str) -> Any:
    """Return an asyncio channel to HOST:PORT, which must show exactly this certificate."""
    credentials = _credentials(certificate_pem, token)
    return grpc.aio.secure_channel(address, credentials, options=_pinned())


def _credentials(certificate_pem: str, token: str) -> Any:
    channel = grpc.ssl_channel_credentials(root_certificates=certificate_pem.encode())
    # grpc sends a token over TLS only, by itself.
    return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token))


def _pinned() -> tuple[tuple[str, object], ...]:
    return (*OPTIONS, ("grpc.ssl_target_name_override", PINNED_NAME))

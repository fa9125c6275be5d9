"""gRPC channels to a server over TLS, with the credentials of a join file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from zfsilod.security.join_file import Access

OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
)


def tls_channel_aio(access: Access) -> Any:
    """Return an asyncio channel to a server; its certificate must be for `access.tls_name`."""
    return grpc.aio.secure_channel(access.address, credentials(access), options=options(access))


def credentials(access: Access) -> Any:
    """Return the authority of a server, and the certificate or token for it."""
    channel = grpc.ssl_channel_credentials(
        root_certificates=access.authority.encode(),
        private_key=access.key.encode() or None,
        certificate_chain=access.certificate.encode() or None,
    )
    if not access.token:
        return channel
    # grpc itself refuses to send call credentials without TLS.
    bearer = grpc.access_token_call_credentials(access.token)
    return grpc.composite_channel_credentials(channel, bearer)


def options(access: Access) -> tuple[tuple[str, object], ...]:
    """Return the options of a channel to a server."""
    return (*OPTIONS, ("grpc.ssl_target_name_override", access.tls_name))

"""Channels of gRPC for tests and benches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from zfsilod.wire.channel import OPTIONS, credentials, options

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.security.join_file import Access


def unix_channel_aio(path: Path) -> Any:
    """Return an asyncio channel to the zfsilod that serves a socket."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)


def tls_channel(access: Access) -> Any:
    """Return a blocking channel to a server; its certificate must be for `access.tls_name`."""
    return grpc.secure_channel(access.address, credentials(access), options=options(access))


class Streaming:
    """A channel that makes every call a response stream, which is the same on the wire.

    For a unary call, grpc for Python delivers the initial metadata only with the response; for a
    stream as soon as it arrives. A change sends the name of its operation there.
    """

    def __init__(self, channel: Any) -> None:
        self.unary_unary = channel.unary_stream
        self.unary_stream = channel.unary_stream

"""Asyncio channels over a unix socket, for tests and benches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from zfsilod.wire.channel import OPTIONS

if TYPE_CHECKING:
    from pathlib import Path


def unix_channel_aio(path: Path) -> Any:
    """Return an asyncio channel to the zfsilod that serves a socket."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)

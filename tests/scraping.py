"""A daemon with its metrics, for tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.api.running import front_of
from zfsilod.gateway.sockets import listen_unix
from zfsilod.monitoring.exporter import Scrape
from zfsilod.monitoring.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.running import Front


@asynccontextmanager
async def scraped(directory: Path, *, most: int = 10) -> AsyncIterator[tuple[Front, Metrics, Path]]:
    """Run a daemon with its metrics, and their socket."""
    async with front_of(directory) as front:
        metrics = Metrics(front.service, most=most, expiries=lambda: {"own": 1.0})
        front.service.executor.listeners.append(metrics.note)
        server = Scrape(metrics.text)
        path = directory / "metrics.sock"
        await server.open(listen_unix(path))
        try:
            yield front, metrics, path
        finally:
            await metrics.close()
            await server.close()

"""What Prometheus is told: how many calls, how they ended, how long they took."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST_S = 5.0
MAX_REQUEST = 8192
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """The figures of one process."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._ended = Counter(
            "zfsilo_csi_calls", "Calls that ended", ["method", "code"], registry=self.registry
        )
        self._took = Histogram(
            "zfsilo_csi_call_seconds", "How long calls took", ["method"],
            buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._running = Gauge(
            "zfsilo_csi_calls_running", "Calls on their way", ["method"], registry=self.registry
        )
        Info("zfsilo_csi", "The plugin", registry=self.registry).info({"version": version})

    @contextmanager
    def in_flight(self, method: str) -> Iterator[None]:
        """Count a call while it runs."""
        with self._running.labels(method).track_inprogress():
            yield

    def ended(self, method: str, code: str, took_s: float) -> None:
        """Count a call that ended."""
        self._ended.labels(method, code).inc()
        self._took.labels(method).observe(took_s)

    async def serve(self, address: str) -> asyncio.Server:
        """Answer /metrics, and /healthz as long as this process does anything at all."""
        host, _colon, port = address.rpartition(":")
        return await asyncio.start_server(
            self._answer, host.strip("[]"), int(port), limit=MAX_REQUEST
        )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(REQUEST_S):
                asked = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
                path = asked[1] if len(asked) > 1 else b""
                writer.write(self._page(path))
                await writer.drain()
        writer.close()

    def _page(self, path: bytes) -> bytes:
        status, body = "404 Not Found", b"/metrics and /healthz are here\n"
        if path == b"/healthz":
            status, body = "200 OK", b"ok\n"
        elif path == b"/metrics":
            status, body = "200 OK", generate_latest(self.registry)
        lines = (
            f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close",
            "Content-Type: text/plain; version=0.0.4; charset=utf-8", "", "",
        )  # fmt: skip
        return "\r\n".join(lines).encode() + body

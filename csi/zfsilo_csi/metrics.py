"""Prometheus metrics of the calls, and the HTTP server for /metrics and /healthz."""

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


class CallMetrics:
    """The metrics of one process."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._ended = Counter(
            "zfsilo_csi_calls", "Completed calls", ["method", "code"], registry=self.registry
        )
        self._took = Histogram(
            "zfsilo_csi_call_seconds",
            "Duration of calls",
            ["method"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._running = Gauge(
            "zfsilo_csi_calls_running", "Calls in progress", ["method"], registry=self.registry
        )
        Info("zfsilo_csi", "The plugin", registry=self.registry).info({"version": version})

    @contextmanager
    def in_flight(self, method: str) -> Iterator[None]:
        """Count a call as in progress."""
        with self._running.labels(method).track_inprogress():
            yield

    def ended(self, method: str, code: str, took_s: float) -> None:
        """Count a completed call."""
        self._ended.labels(method, code).inc()
        self._took.labels(method).observe(took_s)

    async def serve(self, address: str) -> asyncio.Server:
        """Serve /metrics, and /healthz, which succeeds as long as the event loop runs.

        Without a host, kubelet reaches it at the address of a pod of either family.
        """
        host, _colon, port = address.rpartition(":")
        return await asyncio.start_server(
            self._reply, host.strip("[]"), int(port), limit=MAX_REQUEST
        )

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(REQUEST_S):
                words = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
                writer.write(self._page(words[1] if len(words) > 1 else b""))
                await writer.drain()
        writer.close()

    def _page(self, path: bytes) -> bytes:
        status, body = "404 Not Found", b"not found; try /metrics or /healthz\n"
        if path == b"/healthz":
            status, body = "200 OK", b"ok\n"
        elif path == b"/metrics":
            status, body = "200 OK", generate_latest(self.registry)
        lines = (
            f"HTTP/1.1 {status}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "Content-Type: text/plain; version=0.0.4; charset=utf-8",
            "",
            "",
        )
        return "\r\n".join(lines).encode() + body

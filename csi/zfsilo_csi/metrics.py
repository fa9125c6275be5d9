"""What Prometheus is told: how many calls, how they ended, how long they took."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def serve(self, address: str) -> None:
        """Answer Prometheus at ADDRESS:PORT, in a thread."""
        host, _colon, port = address.rpartition(":")
        start_http_server(int(port), addr=host.strip("[]"), registry=self.registry)

"""Metrics: counts since the start of the daemon, and values read from store and host.

A scrape must be answered when the host does not respond, and soon when there are many volumes: it
waits WAIT_S for new values of store and host, else uses the previous ones. Volumes have series of
their own up to a limit (`metrics.volumes`); above it only the sums remain.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Count
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client import disable_created_metrics as _untyped
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector

from zfsilod import __version__
from zfsilod.host.counters import Counters
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.names import target_of
from zfsilod.model.ownership import HOLDS
from zfsilod.service.orphan_scan import find_orphans
from zfsilod.storage.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from zfsilod.model.records import Operation
    from zfsilod.service.reconcile import SyncReport
    from zfsilod.service.service import Service

WAIT_S = 0.1  # that a scrape waits for store and host
READING_S = 60.0  # deadline for reading the host
FRESH_S = 10.0  # a younger reading is used again
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
ORPHANS = ("zvol", "export", "target", "backstore", "acl", "session", "node", "mount")
KINDS = (
    "missing",
    "unexpected",
    "lost",
    "conflict",
    "unknown",
    "not_restored",
    "filesystem_fails",
)

_disable_created: Callable[[], None] = _untyped
Expiries = dict[str, float]


class Reading:
    """Values read from the host: free space, usage of zvols, counters of the kernel."""

    def __init__(self, service: Service, summary: Summary, most: int) -> None:
        """Read the host, in a thread; starts two processes whatever the number of volumes."""
        self.at = time.monotonic()
        settings, counters = service.context.settings, Counters()
        served = list(summary.volumes.values())
        targets = [
            target_of(settings.export.prefix, volume.uid, volume.target)
            for volume in map(summary.volumes.__getitem__, summary.publications)
        ]
        self.space = service.context.machine.zfs.capacity(settings.root) if settings.root else None
        self.usages = service.context.machine.zfs.usages(settings.root) if settings.root else {}
        self.own_sessions = counters.own_sessions()
        self.served_sessions = counters.served_sessions(targets)
        self.counts = {
            volume.uid: count
            for volume in (served if len(served) <= most else ())
            if (count := counters.volume(volume.uid, volume.target)) is not None
        }


class Metrics:
    """The metrics of one daemon."""

    def __init__(self, service: Service, *, most: int, expiries: Callable[[], Expiries]) -> None:
        """`most`: volumes with series of their own; `expiries`: of certificates, by name."""
        self._service = service
        self._most = most
        self._expiries = expiries
        self._started: dict[str, float] = {}
        self._summary: Summary | None = None
        self._reading: Reading | None = None
        self._counting: asyncio.Future[Summary] | None = None
        self._asking: asyncio.Future[Reading] | None = None
        _disable_created()  # a series *_created for each counter, without a use
        self.registry = registry = CollectorRegistry()
        self._operations = Counter(
            "zfsilo_operations", "Operations that ended.", ["kind", "outcome"], registry=registry
        )
        self._rollbacks = Counter(
            "zfsilo_rollbacks",
            "Operations that were rolled back.",
            ["kind"],
            registry=registry,
        )
        self._seconds = Histogram(
            "zfsilo_operation_seconds",
            "Time from the submission of an operation to its end.",
            ["kind"],
            buckets=SECONDS,
            registry=registry,
        )
        self._steps = Histogram(
            "zfsilo_step_seconds",
            "Time that a step took.",
            ["step", "way"],
            buckets=SECONDS,
            registry=registry,
        )
        self._drift = Gauge(
            "zfsilo_drift",
            "Facts that differed from the records at the last comparison.",
            ["kind"],
            registry=registry,
        )
        self._orphans = Gauge(
            "zfsilo_orphans",
            "Objects with marks of zfsilo that no record owns, at the last scan.",
            ["kind"],
            registry=registry,
        )
        ProcessCollector(registry=registry)
        registry.register(self)

    def note(self, operation: Operation) -> None:
        """Count an operation that changed."""
        started = self._started.get(operation.id)
        if not operation.ended:
            if started is None:
                self._started[operation.id] = time.monotonic()
            return
        if self._started.pop(operation.id, None) is None:
            return  # stored as ended, or counted before
        assert started is not None
        self._operations.labels(operation.kind, operation.state.lower()).inc()
        self._seconds.labels(operation.kind).observe(time.monotonic() - started)
        if operation.state == "ROLLED_BACK":
            self._rollbacks.labels(operation.kind).inc()
        for action in operation.actions:
            if action.took_ms:
                name = type(action.step).__name__
                self._steps.labels(name, action.way).observe(action.took_ms / 1000)

    def note_report(self, report: SyncReport) -> None:
        """Set the drift gauges from a comparison of all volumes."""
        counts = Count(
            difference.reason.lower() or ("missing" if difference.wanted else "unexpected")
            for drift in report.reports
            for difference in drift.differences
        )
        for kind in KINDS:
            self._drift.labels(kind).set(counts[kind])

    async def count_orphans(self) -> None:
        """Set the orphan gauges; they keep their values when the host cannot be read."""
        with suppress(ZfsiloError):
            present = await find_orphans(self._service.context)
            counts = Count(orphan.name.partition("/")[0] for orphan in present)
            for kind in ORPHANS:
                self._orphans.labels(kind).set(counts[kind])

    async def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        until = asyncio.get_running_loop().time() + WAIT_S
        if self._counting is None:
            with self._service.context.store.read() as txn:
                revision = txn.revision()
            if self._summary is None or revision != self._summary.revision:
                self._counting = asyncio.ensure_future(asyncio.to_thread(self._count))
        await self._wait_for(self._counting, None if self._summary is None else until)
        old = self._reading is None or time.monotonic() - self._reading.at > FRESH_S
        if self._asking is None and self._summary is not None and old:
            question = partial(Reading, self._service, self._summary, self._most)
            self._asking = asyncio.ensure_future(self._service.context.look(question, READING_S))
        await self._wait_for(self._asking, until)
        self._take()
        return await asyncio.to_thread(generate_latest, self.registry)

    def _count(self) -> Summary:
        with self._service.context.store.read() as txn:
            return Summary(txn)

    async def _wait_for(self, work: asyncio.Future[Any] | None, until: float | None) -> None:
        """Wait for new values until a time of the event loop's clock; None: without limit."""
        if work is not None:
            left = None if until is None else until - asyncio.get_running_loop().time()
            await asyncio.wait({work}, timeout=None if left is None else max(0.0, left))
            self._take()

    def _take(self) -> None:
        """Use the new values that have arrived."""
        if self._counting is not None and self._counting.done():
            self._summary, self._counting = self._counting.result(), None
        if self._asking is not None and self._asking.done():
            asked, self._asking = self._asking, None
            if not isinstance(asked.exception(), ZfsiloError):
                self._reading = asked.result()

    async def close(self) -> None:
        """Cancel the reads in progress."""
        for work in (self._counting, self._asking):
            if work is not None:
                work.cancel()

    # What prometheus-client calls

    def describe(self) -> list[Metric]:
        """Return nothing: `collect` needs the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the values read for this scrape."""
        yield _gauge("zfsilo_info", "The daemon.", {(__version__,): 1}, ["version"])
        yield _gauge(
            "zfsilo_certificate_expiry_timestamp_seconds",
            "When a certificate expires.",
            {(name,): at for name, at in self._expiries().items()},
            ["name"],
        )
        holds = {hold.reason for hold in self._service.context.ownership.holds}
        yield _gauge(
            "zfsilo_held",
            "1 while nothing is changed on the host, or in its pool, for this reason.",
            {(reason.lower(),): int(reason in holds) for reason in HOLDS},
            ["reason"],
        )
        used = self._service.context.store.used()
        yield _gauge("zfsilo_store_used_ratio", "Used share of the store.", {(): used})
        if self._summary is not None:
            context = self._service.context
            more = len(context.identity_changes) + len(self._summary.late(context.now()))
            yield from _of_summary(self._summary, more + self._service.health.unmet_wishes())
            if self._reading is not None:
                yield from _of_reading(self._reading)
                yield from self._of_volumes(self._summary, self._reading)

    def _of_volumes(self, summary: Summary, reading: Reading) -> Iterator[Metric]:
        """Yield the series of single volumes, unless there are too many."""
        omitted = len(summary.volumes) > self._most
        yield _gauge(
            "zfsilo_volume_series_omitted",
            "1 when there are too many volumes for series of their own.",
            {(): int(omitted)},
        )
        if omitted:
            return
        volumes = summary.volumes.items()
        usages = {
            (n,): reading.usages[v.dataset] for n, v in volumes if v.dataset in reading.usages
        }
        for place, (name, text) in enumerate(VOLUME_GAUGES.items()):
            yield _gauge(name, text, {k: v[place] for k, v in usages.items()}, ["volume"])
        counts = {(n,): reading.counts[v.uid] for n, v in volumes if v.uid in reading.counts}
        for place, (name, text) in enumerate(VOLUME_COUNTERS.items()):
            family = CounterMetricFamily(name, text, labels=["volume"])
            for key, value in counts.items():
                family.add_metric(list(key), value[place])
            yield family


VOLUME_GAUGES = {
    "zfsilo_volume_size_bytes": "The size of a volume.",
    "zfsilo_volume_used_bytes": "Space that a volume uses in its pool, snapshots included.",
    "zfsilo_volume_referenced_bytes": "Space that a volume refers to.",
}
VOLUME_COUNTERS = {
    "zfsilo_volume_commands": "Commands of clients since the export.",
    "zfsilo_volume_read_bytes": "Bytes that clients read since the export.",
    "zfsilo_volume_written_bytes": "Bytes that clients wrote since the export.",
}


def _of_summary(summary: Summary, more: int) -> Iterator[Metric]:
    """Yield the counts of the records; `more`: problems that have no condition in them."""
    states = {(state.lower(),): count for state, count in summary.states.items()}
    live = {(state.lower(),): count for state, count in summary.operations.items()}
    live.setdefault(("needs_repair",), 0)  # alerts use it
    yield _gauge("zfsilo_volumes", "Volumes in each state.", states, ["state"])
    yield _gauge("zfsilo_operations_live", "Operations that have not ended.", live, ["state"])
    size = sum(volume.size_bytes for volume in summary.volumes.values())
    for name, text, value in (
        (
            "zfsilo_publications",
            "Volumes that are published to hosts.",
            summary.publications.total(),
        ),
        ("zfsilo_attachments", "Volumes of servers that this host uses.", len(summary.attachments)),
        ("zfsilo_hosts", "Hosts that volumes can be published to.", summary.hosts),
        (
            "zfsilo_pending_releases",
            "Releases that a server has not confirmed.",
            summary.pending_releases,
        ),
        (
            "zfsilo_attention",
            "Problems that need an administrator: zfsiloctl status.",
            len(summary.attention) + more,
        ),
        ("zfsilo_promised_bytes", "Sum of the sizes of thin volumes.", summary.promised_bytes),
        ("zfsilo_volumes_size_bytes", "Sum of the sizes of all volumes.", size),
    ):
        yield _gauge(name, text, {(): value})
    yield from _of_policies(summary)
    yield from _of_roles(summary)


def _of_policies(summary: Summary) -> Iterator[Metric]:
    """Yield the outcomes of policies, and the ages of replicas."""
    schedules, replications = summary.policies, summary.replication_runs
    for name, text, outcomes, field in (
        (
            "zfsilo_schedule_failures",
            "What failed in the last run of a snapshot policy.",
            schedules,
            "failed",
        ),
        (
            "zfsilo_schedule_success_timestamp_seconds",
            "When a snapshot policy last took all of its snapshots.",
            schedules,
            "succeeded_at",
        ),
        (
            "zfsilo_replication_failures",
            "What failed in the last run of a replication policy.",
            replications,
            "failed",
        ),
        (
            "zfsilo_replication_success_timestamp_seconds",
            "When a replication policy last sent all of its volumes.",
            replications,
            "succeeded_at",
        ),
    ):
        values = {(policy,): getattr(one, field) for policy, one in outcomes.items()}
        yield _gauge(name, text, values, ["policy"])
    for name, text, times in (
        (
            "zfsilo_replication_snapshot_timestamp_seconds",
            "When the newest snapshot was taken that a peer has of a volume.",
            summary.replications,
        ),
        (
            "zfsilo_replica_snapshot_timestamp_seconds",
            "When the newest snapshot was taken that this server has of a volume of a peer.",
            summary.replicas,
        ),
        (
            "zfsilo_replication_due_timestamp_seconds",
            "When a peer must have a newer snapshot of a volume, by its replication policy.",
            summary.due,
        ),
    ):
        yield _gauge(name, text, times, ["volume", "peer"])


def _of_roles(summary: Summary) -> Iterator[Metric]:
    yield _gauge(
        "zfsilo_volume_not_served",
        "1 for a volume that is not served because of a peer that was promoted, or may have been.",
        dict.fromkeys(summary.withheld, 1),
        ["volume", "reason"],
    )


def _of_reading(reading: Reading) -> Iterator[Metric]:
    age = time.monotonic() - reading.at
    yield _gauge("zfsilo_reading_age_seconds", "Age of the values read from the host.", {(): age})
    sessions = {("served",): reading.served_sessions, ("own",): reading.own_sessions}
    yield _gauge(
        "zfsilo_sessions", "Sessions, by side; of targets over iSCSI only.", sessions, ["side"]
    )
    if reading.space is not None:
        available, total = reading.space
        yield _gauge(
            "zfsilo_root_available_bytes", "Free space below the dataset root.", {(): available}
        )
        yield _gauge(
            "zfsilo_root_size_bytes", "Free and used space below the dataset root.", {(): total}
        )
        used = sum(usage[1] for usage in reading.usages.values())
        yield _gauge("zfsilo_volumes_used_bytes", "Space that all volumes use.", {(): used})


def _gauge(
    name: str, text: str, values: Mapping[Any, float], labels: list[str] | None = None
) -> Any:
    """Return a family with a value for each tuple of labels."""
    family = GaugeMetricFamily(name, text, labels=labels or [])
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family

"""The metrics: what the daemon counted since its start, and what a look at host and store gives.

A scrape must answer when the host does not, and soon when there is very much: it waits a moment for
a look at the store and one at the host, else tells what the last ones gave. Volumes have series of
their own up to a limit (`metrics.volumes`); with more there are sums only. The table of all metrics
is units/doc/metrics.md.
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
from zfsilod.requests import orphans
from zfsilod.storage.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from zfsilod.model.records import Operation
    from zfsilod.requests.sync import Report
    from zfsilod.service.service import Service

WAIT_S = 0.1  # of a scrape, for looks at store and host
READING_S = 60.0  # the host's own deadline
FRESH_S = 10.0  # a reading younger than this is not made anew
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
ORPHANS = ("zvol", "export", "acl", "session", "node", "mount")
KINDS = ("missing", "too_much", "lost", "conflict", "unknown", "not_restored")

_disable_created: Callable[[], None] = _untyped
Expiries = dict[str, float]


class Reading:
    """What the host said: room, usage of zvols, counters of the kernel."""

    def __init__(self, service: Service, summary: Summary, most: int) -> None:
        """Ask it; in a thread, with two processes whatever the number of volumes."""
        self.at = time.monotonic()
        settings, counters = service.settings, Counters()
        uids = [each.uid for each in summary.volumes.values()]
        published = [summary.volumes[name].uid for name in summary.publications]
        self.room = service.machine.zfs.capacity(settings.root) if settings.root else None
        self.usages = service.machine.zfs.usages(settings.root) if settings.root else {}
        self.own_sessions = counters.own_sessions()
        self.served_sessions = counters.served_sessions(published, settings.export.prefix)
        self.counts = {
            uid: found
            for uid in (uids if len(uids) <= most else ())
            if (found := counters.volume(uid)) is not None
        }


class Metrics:
    """Everything that can be scraped of one daemon."""

    def __init__(self, service: Service, *, most: int, expiries: Callable[[], Expiries]) -> None:
        """`most`: volumes with series of their own; `expiries`: of certificates, by name."""
        self._service = service
        self._most = most
        self._expiries = expiries
        self._begun: dict[str, float] = {}
        self._summary: Summary | None = None
        self._reading: Reading | None = None
        self._counting: asyncio.Future[Summary] | None = None
        self._asking: asyncio.Future[Reading] | None = None
        _disable_created()  # one more series for each, which nobody looks at
        self.registry = registry = CollectorRegistry()
        self._operations = Counter(
            "zfsilo_operations", "Operations that ended.", ["kind", "outcome"], registry=registry
        )
        self._rollbacks = Counter(
            "zfsilo_rollbacks",
            "Operations that began to be taken back.",
            ["kind"],
            registry=registry,
        )
        self._seconds = Histogram(
            "zfsilo_operation_seconds",
            "From an operation's storing to its end.",
            ["kind"],
            buckets=SECONDS,
            registry=registry,
        )
        self._steps = Histogram(
            "zfsilo_step_seconds",
            "What a step that moved took.",
            ["step", "way"],
            buckets=SECONDS,
            registry=registry,
        )
        self._drift = Gauge(
            "zfsilo_drift",
            "Facts that differed from the records at the last look.",
            ["kind"],
            registry=registry,
        )
        self._orphans = Gauge(
            "zfsilo_orphans",
            "Things with our marks that no record owns, at the last look.",
            ["kind"],
            registry=registry,
        )
        ProcessCollector(registry=registry)
        registry.register(self)

    def note(self, operation: Operation) -> None:
        """Take note of a change of an operation."""
        begun = self._begun.get(operation.id)
        if not operation.ended:
            if begun is None:
                self._begun[operation.id] = time.monotonic()
            return
        if self._begun.pop(operation.id, None) is None:
            return  # it was born ended, or is counted already
        assert begun is not None
        self._operations.labels(operation.kind, operation.state.lower()).inc()
        self._seconds.labels(operation.kind).observe(time.monotonic() - begun)
        if operation.state == "ROLLED_BACK":
            self._rollbacks.labels(operation.kind).inc()
        for action in operation.actions:
            if action.took_ms:
                name = type(action.step).__name__
                self._steps.labels(name, action.way).observe(action.took_ms / 1000)

    def note_report(self, report: Report) -> None:
        """Take note of what a look at all volumes found."""
        found = Count(
            each.reason.lower() or ("missing" if each.wanted else "too_much")
            for reports in report.reports
            for each in reports.differences
        )
        for kind in KINDS:
            self._drift.labels(kind).set(found[kind])

    async def count_orphans(self) -> None:
        """Look for what no record owns; when that cannot be known, the last count stays."""
        with suppress(ZfsiloError):
            found = Count(each.name.partition("/")[0] for each in await orphans.find(self._service))
            for kind in ORPHANS:
                self._orphans.labels(kind).set(found[kind])

    async def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        until = asyncio.get_running_loop().time() + WAIT_S
        if self._counting is None and self._outdated():
            self._counting = asyncio.ensure_future(asyncio.to_thread(self._count))
        await self._wait_for(self._counting, None if self._summary is None else until)
        if self._asking is None and self._summary is not None and self._old():
            question = partial(Reading, self._service, self._summary, self._most)
            self._asking = asyncio.ensure_future(self._service.look(question, READING_S))
        await self._wait_for(self._asking, until)
        self._take()
        return await asyncio.to_thread(generate_latest, self.registry)

    def _outdated(self) -> bool:
        """Tell whether a record changed since they were counted."""
        with self._service.store.read() as txn:
            return self._summary is None or txn.revision() != self._summary.revision

    def _old(self) -> bool:
        return self._reading is None or time.monotonic() - self._reading.at > FRESH_S

    def _count(self) -> Summary:
        with self._service.store.read() as txn:
            return Summary(txn)

    async def _wait_for(self, work: asyncio.Future[Any] | None, until: float | None) -> None:
        """Wait for one of the two looks for what is left of a scrape's patience; None: its end."""
        if work is not None:
            left = None if until is None else until - asyncio.get_running_loop().time()
            await asyncio.wait({work}, timeout=None if left is None else max(0.0, left))
            self._take()

    def _take(self) -> None:
        """Take what the looks gave, as far as they are through."""
        if self._counting is not None and self._counting.done():
            self._summary, self._counting = self._counting.result(), None
        if self._asking is not None and self._asking.done():
            asked, self._asking = self._asking, None
            if not isinstance(asked.exception(), ZfsiloError):
                self._reading = asked.result()

    async def close(self) -> None:
        """Wait for nothing any more."""
        for work in (self._counting, self._asking):
            if work is not None:
                work.cancel()

    # What prometheus-client calls

    def describe(self) -> list[Metric]:
        """Say nothing beforehand: what `collect` gives needs a look at the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what was looked at for this scrape."""
        yield _gauge("zfsilo_info", "The daemon.", {(__version__,): 1}, ["version"])
        yield _gauge(
            "zfsilo_certificate_expiry_timestamp_seconds",
            "When a certificate ends.",
            {(name,): at for name, at in self._expiries().items()},
            ["name"],
        )
        used = self._service.store.used()
        yield _gauge("zfsilo_store_used_ratio", "How full the store is.", {(): used})
        if self._summary is not None:
            yield from _of_summary(self._summary)
            if self._reading is not None:
                yield from _of_reading(self._reading)
                yield from self._of_volumes(self._summary, self._reading)

    def _of_volumes(self, summary: Summary, reading: Reading) -> Iterator[Metric]:
        """Yield what each volume has, unless there are too many."""
        omitted = len(summary.volumes) > self._most
        yield _gauge(
            "zfsilo_volume_series_omitted",
            "Whether there are too many volumes for own series.",
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
    "zfsilo_volume_used_bytes": "What a volume takes of its pool.",
    "zfsilo_volume_referenced_bytes": "What a volume's content takes.",
}
VOLUME_COUNTERS = {
    "zfsilo_volume_commands": "SCSI commands of initiators since the export.",
    "zfsilo_volume_read_bytes": "Bytes that initiators read since the export.",
    "zfsilo_volume_written_bytes": "Bytes that initiators wrote since the export.",
}


def _of_summary(found: Summary) -> Iterator[Metric]:
    states = {(state.lower(),): count for state, count in found.states.items()}
    live = {(state.lower(),): count for state, count in found.operations.items()}
    live.setdefault(("needs_repair",), 0)  # it is what alerts look for
    yield _gauge("zfsilo_volumes", "Volumes in each state.", states, ["state"])
    yield _gauge("zfsilo_operations_live", "Operations that have not ended.", live, ["state"])
    size = sum(each.size_bytes for each in found.volumes.values())
    for name, text, value in (
        ("zfsilo_publications", "Volumes that are published to hosts.", found.publications.total()),
        ("zfsilo_attachments", "Volumes of servers that this host uses.", len(found.attachments)),
        ("zfsilo_hosts", "Hosts that volumes can be published to.", found.hosts),
        ("zfsilo_debts", "Releases that servers still have to be told.", found.pending_releases),
        ("zfsilo_attention", "What does not get well by itself.", len(found.attention)),
        ("zfsilo_promised_bytes", "What all thin volumes may come to take.", found.promised_bytes),
        ("zfsilo_volumes_size_bytes", "The sizes of all volumes together.", size),
    ):
        yield _gauge(name, text, {(): value})


def _of_reading(found: Reading) -> Iterator[Metric]:
    age = time.monotonic() - found.at
    yield _gauge("zfsilo_reading_age_seconds", "How old what the host said is.", {(): age})
    sessions = {("served",): found.served_sessions, ("own",): found.own_sessions}
    yield _gauge("zfsilo_sessions", "iSCSI sessions, by side.", sessions, ["side"])
    if found.room is not None:
        available, total = found.room
        yield _gauge("zfsilo_root_available_bytes", "PoolSpace below the root.", {(): available})
        yield _gauge("zfsilo_root_size_bytes", "PoolSpace and what is used.", {(): total})
        used = sum(each[1] for each in found.usages.values())
        yield _gauge("zfsilo_volumes_used_bytes", "What all volumes take.", {(): used})


def _gauge(
    name: str, text: str, values: Mapping[Any, float], labels: list[str] | None = None
) -> Any:
    """Return a family with a value for each tuple of labels."""
    family = GaugeMetricFamily(name, text, labels=labels or [])
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family

"""What a daemon keeps has an end: pending releases, publications of a volume, batches, watches."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import administrator, service_fixture
from zfsilod.model.errors import FailedPrecondition, ResourceExhausted
from zfsilod.model.records import Host, PendingRelease, Publication
from zfsilod.requests.connect import MAX_PENDING, Connect
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.hosts import CreateHost
from zfsilod.requests.publications import MAX_PUBLICATIONS, Publish, Unpublish
from zfsilod.requests.snapshots import CreateSnapshot
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service import drift, reconcile, service

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service_fixture import ServiceFixture
    from zfsilod.model.words import AccessMode

GIB = 1 << 30
READERS: AccessMode = "MULTI_NODE_READER_ONLY"


async def published_to(fixture: ServiceFixture, count: int) -> None:
    """Publish a volume to so many hosts; all but the first are records only."""
    await fixture.do(CreateVolume(id="data", capacity_bytes=GIB, access_modes=(READERS,)))
    await fixture.do(CreateHost(id="h", iqn="iqn.2024-01.lab.x:h"))
    await fixture.do(Publish(volume="data", host="h", access_mode=READERS, readonly=True))

    def more(txn: Any) -> None:
        known = txn.get(Publication, "data/h")
        for number in range(1, count):
            txn.put(Host(id=f"h{number:04}", iqn=f"iqn.2024-01.lab.x:h{number}"))
            name = f"h{number:04}"
            txn.put(known.but(id=f"data/{name}", host=name))

    await fixture.service.context.write(more)


async def test_the_publications_of_one_volume_have_an_end(tmp_path: Path) -> None:
    """An operation that ends all of them has a few steps for each."""
    async with service_fixture(tmp_path) as fixture:
        await published_to(fixture, MAX_PUBLICATIONS)
        await fixture.do(CreateHost(id="late", iqn="iqn.2024-01.lab.x:late"))
        late = Publish(volume="data", host="late", access_mode=READERS, readonly=True)
        with pytest.raises(ResourceExhausted, match=f"published to {MAX_PUBLICATIONS} hosts"):
            await fixture.do(late)
        planned = await fixture.service.plan(Unpublish(volume="data"), caller=administrator("root"))
        assert len(planned.actions) < 8 * MAX_PUBLICATIONS


async def test_pending_releases_have_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop of connects whose publication fails leaves one record each, up to a limit."""
    async with service_fixture(tmp_path) as fixture:
        context = fixture.service.context

        async def not_published(_server: str, _volume: str) -> Any:
            raise FailedPrecondition("not published", reason="NOT_PUBLISHED")

        async def unreachable(
            _server: str, _volume: str, *, client_operation: str, transport: str, tls: bool
        ) -> None:
            raise FailedPrecondition(f"cannot publish for {client_operation}")

        monkeypatch.setattr(context.servers, "fetch", not_published)
        monkeypatch.setattr(context.servers, "publish", unreachable)
        connect = Connect(id="data", server="give", volume="data", publish_if_needed=True)
        with pytest.raises(FailedPrecondition, match="cannot publish"):
            await fixture.do(connect)

        def many(txn: Any) -> None:
            for number in range(MAX_PENDING):
                txn.put(PendingRelease(id=f"r{number}", server="give", volume="data"))

        await context.write(many)
        with pytest.raises(ResourceExhausted, match="wait for their release"):
            await fixture.do(connect)
        with context.read() as txn:
            assert sum(1 for _one in txn.scan(PendingRelease)) <= MAX_PENDING + 1


async def test_a_batch_leaves_the_rest_of_a_full_store_to_descents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service_fixture(tmp_path) as fixture:
        names = [f"v{number:02}" for number in range(2 * service.CROWDED_BATCH)]
        for name in names:
            await fixture.do(CreateVolume(id=name, capacity_bytes=1 << 20))
        monkeypatch.setattr(fixture.service.context.store, "used", lambda: 0.95)
        requests = [SyncVolume(id=name) for name in names]
        caller = administrator("root")
        stored = await fixture.service.submit_batch(requests, caller=caller)
        assert len(stored) == service.CROWDED_BATCH
        for operation in stored:
            await fixture.service.wait(operation.id, 20)
        await fixture.do(DeleteVolume(id=names[0]))
        monkeypatch.undo()
        rest = await fixture.service.submit_batch(requests[1:], caller=caller)
        assert len(rest) == len(names) - 1
        for operation in rest:
            await fixture.service.wait(operation.id, 20)


async def test_a_watch_that_is_not_read_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the store from its revision on, a part at a time, and misses no operation."""
    monkeypatch.setattr(service, "WATCH_AT_ONCE", 4)
    async with service_fixture(tmp_path) as fixture:
        await fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
        watch: Any = fixture.service.watch(0)
        first = await anext(watch)
        changed = []
        for number in range(20):
            update = UpdateVolume(id="data", mask=("labels",), labels=(("n", str(number)),))
            changed.append(await fixture.do(update))
        seen: set[str] = {first.id}
        async with asyncio.timeout(20):
            while not {one.id for one in changed} <= seen:
                operation = await anext(watch)
                seen.add(operation.id)
        await watch.aclose()


@pytest.mark.parametrize("hindrance", ["a nearly full store", "an operation"])
async def test_a_sync_of_all_restores_what_a_batch_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hindrance: str
) -> None:
    """Its report says that everything was repaired."""
    async with service_fixture(tmp_path) as fixture:
        names = [f"v{number:02}" for number in range(2 * service.CROWDED_BATCH)]
        for name in names:
            await fixture.do(CreateVolume(id=name, capacity_bytes=1 << 20))
            await fixture.do(Publish(volume=name, host="take"))
        fixture.host.facts.reboot()
        if hindrance == "an operation":
            compared = drift.compare_all

            async def then_snapshot(*arguments: Any) -> Any:
                reports = await compared(*arguments)
                fixture.launcher.gate.clear()
                snapshot = CreateSnapshot(id="first", volume=names[3])
                await fixture.service.submit(snapshot, caller=administrator("timer"))
                asyncio.get_running_loop().call_later(0.1, fixture.launcher.gate.set)
                return reports

            monkeypatch.setattr(reconcile, "compare_all", then_snapshot)
        else:
            monkeypatch.setattr(fixture.service.context.store, "used", lambda: 0.95)
        report = await fixture.service.reconciler.sync_all(administrator("root"))
        assert (report.complaints, report.unfinished) == ((), False)
        assert len(fixture.host.lio.list_targets()) == len(names)

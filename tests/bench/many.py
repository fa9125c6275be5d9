"""Figures for many volumes: a sync, the restore of exports after a boot, a page of a list."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.table import Figure, at_most
from tests.host.doubles import FakeConfigfs
from tests.service_fixture import ServiceFixture, administrator, service_fixture
from zfsilod.host.lio import RealLio
from zfsilod.host.run import Completed, Runner
from zfsilod.host.zfs import UID
from zfsilod.host.zvol_survey import SurveyedZfs
from zfsilod.model.marks import EPOCH
from zfsilod.model.records import Volume
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.drift import compare
from zfsilod.storage.store import Store
from zfsilod.storage.volume_view import page, volume_views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host import HostAdapters
    from zfsilod.storage.volume_view import VolumeView

VOLUMES = (1, 100, 1000)
TARGETS_S = {1000: 0.35}
ROUNDS = 3
RECORDS = (100, 100_000)
PAGE = 100
AT_ONCE = 32
PROCESSES = 5


class CountingRunner(Runner):
    """A runner that answers for zfs with these volumes, and counts its calls."""

    def __init__(self, views: list[VolumeView]) -> None:
        super().__init__()
        self.count = 0
        lines = ["tank/zfsilo\ttype\tfilesystem\t-"]
        for volume in (view.volume for view in views):
            assert volume is not None
            values = {
                "type": "volume",
                "guid": volume.guid,
                "volsize": str(volume.capacity_bytes),
                "sync": "always",
            }
            lines += [f"{volume.dataset}\t{name}\t{value}\t-" for name, value in values.items()]
            marks = {UID: volume.uid, EPOCH: str(volume.epoch)}
            lines += [f"{volume.dataset}\t{name}\t{value}\tlocal" for name, value in marks.items()]
        self.output = "\n".join([*lines, ""])

    def __call__(self, argv: list[str], **_how: object) -> Completed:
        """Return the output of zfs, and nothing for other tools."""
        self.count += 1
        return Completed(tuple(argv), 0, self.output if argv[0] == "zfs" else "", "")


class ServerHost:
    """The real adapters of a server over a `CountingRunner` and an empty configfs."""

    def __init__(
        self, run: CountingRunner, names: tuple[str, ...], folder: Path, chap: object
    ) -> None:
        self.zfs = SurveyedZfs(run, names)
        self.lio = RealLio(run, self.zfs.device, FakeConfigfs(folder / "target"))
        self.chap = chap


async def fill(fixture: ServiceFixture, count: int) -> None:
    """Make and publish so many volumes."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            name = f"v{number:06}"
            await fixture.do(
                CreateVolume(id=name, capacity_bytes=1 << 20, hosts=("take",)),
                Publish(volume=name, host="take"),
            )

    await asyncio.gather(*(one(number) for number in range(count)))


async def _seconds_of_sync(fixture: ServiceFixture) -> float:
    """Return the seconds of a SyncVolumes that finds nothing to repair."""
    start = time.perf_counter()
    await fixture.service.reconciler.sync_all(caller=administrator("bench"))
    return time.perf_counter() - start


async def _sync(count: int, folder: Path) -> tuple[float, float, int]:
    """Return the seconds of a sync without drift and of one after a boot, and the processes."""
    async with service_fixture(folder) as fixture:
        await fill(fixture, count)
        unchanged = median([await _seconds_of_sync(fixture) for _round in range(ROUNDS)])
        fixture.host.facts.reboot()
        start = time.perf_counter()
        report = await fixture.service.reconciler.sync_all(caller=administrator("bench"))
        recovered = time.perf_counter() - start
        assert report.complaints == ()
        with fixture.service.context.store.read() as txn:
            views = list(volume_views(txn))
        run = CountingRunner(views)
        datasets = tuple(view.volume.dataset for view in views if view.volume)
        machine: HostAdapters = ServerHost(
            run, datasets, folder, fixture.service.context.store.chap
        )  # type: ignore[assignment]
        for view in views:
            assert not compare(view, machine, fixture.service.context.settings).problems
        return unchanged, recovered, run.count


def _pages(count: int, folder: Path) -> float:
    """Return the seconds of a page in the middle of so many records."""
    store = Store.create(folder, host="simulated", size_bytes=1 << 30, durable=False)
    for first in range(0, count, 1000):
        with store.write() as txn:
            for number in range(first, min(count, first + 1000)):
                txn.put(_volume(number))
    times = []
    for _round in range(21):
        start = time.perf_counter()
        with store.read() as txn:
            views, _after = page(
                txn, after=f"v{(count - PAGE) // 2:06}", limit=PAGE, wanted=lambda _view: True
            )
        times.append(time.perf_counter() - start)
        assert views
    store.close()
    return median(times)


def _volume(number: int) -> Volume:
    return Volume(
        id=f"v{number:06}",
        uid=f"{number:032x}",
        dataset=f"tank/zfsilo/v{number:06}",
        capacity_bytes=1 << 30,
        thin=True,
        mode="FILESYSTEM",
        volblocksize=16384,
        state="CREATED",
    )


def figures() -> Iterator[Figure]:
    """Measure times over a simulated host; count processes of the real adapters."""
    for count in VOLUMES:
        with tempfile.TemporaryDirectory() as folder:
            unchanged, recovered, processes = asyncio.run(_sync(count, Path(folder)))
        name = f"Sync of {count} volumes, no drift"
        if count in TARGETS_S:
            yield at_most(name, unchanged, TARGETS_S[count], " s")
        else:
            yield Figure(name, f"{1e3 * unchanged:.0f} ms")
        yield Figure(f"Sync of {count} volumes after a boot", f"{1e3 * recovered:.0f} ms")
        yield at_most(f"processes of a sync of {count} volumes", processes, PROCESSES, "")
    for count in RECORDS:
        with tempfile.TemporaryDirectory() as folder:
            seconds = _pages(count, Path(folder))
        yield Figure(f"a page of {PAGE} out of {count} records", f"{1e3 * seconds:.2f} ms")

"""Many volumes at once: what a Sync costs, how soon exports are back, what a page costs."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.table import Figure, at_most
from tests.doubles import House, house
from tests.host.doubles import FakeConfigfs
from zfsilod.host.lio import RealLio
from zfsilod.host.run import Completed, Runner
from zfsilod.host.zvol_survey import SurveyedZfs
from zfsilod.model.records import Volume
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.drift import compare
from zfsilod.storage.store import Store
from zfsilod.storage.volume_view import page, volume_views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host import Host
    from zfsilod.storage.volume_view import VolumeView

VOLUMES = (1, 100, 1000)
RECORDS = (100, 100_000)
PAGE = 100
AT_ONCE = 32
PROCESSES = 5


class Counting(Runner):
    """Says what zfs would say of these volumes, and counts how often it is asked."""

    def __init__(self, found: list[VolumeView]) -> None:
        super().__init__()
        self.count = 0
        lines = ["tank/zfsilo\ttype\tfilesystem\t-"]
        for each in (found_one.volume for found_one in found):
            assert each is not None
            said = {"type": "volume", "guid": each.guid, "volsize": str(each.capacity_bytes)}
            lines += [f"{each.dataset}\t{name}\t{value}\t-" for name, value in said.items()]
            lines.append(f"{each.dataset}\tzfsilo:uid\t{each.uid}\tlocal")
        self.said = "\n".join([*lines, ""])

    def __call__(self, argv: list[str], **_how: object) -> Completed:
        """Answer for zfs; whatever else is asked counts too."""
        self.count += 1
        return Completed(tuple(argv), 0, self.said if argv[0] == "zfs" else "", "")


class Seen:
    """The real adapters of a storage host over what `Counting` says, and an empty configfs."""

    def __init__(self, run: Counting, names: tuple[str, ...], folder: Path, chap: object) -> None:
        self.zfs = SurveyedZfs(run, names)
        self.lio = RealLio(run, self.zfs.device, FakeConfigfs(folder / "target"))
        self.chap = chap


async def fill(zfsilo: House, count: int) -> None:
    """Make and publish so many volumes."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            name = f"v{number:06}"
            await zfsilo.do(
                CreateVolume(id=name, capacity_bytes=1 << 20, hosts=("take",)),
                Publish(volume=name, host="take"),
            )

    await asyncio.gather(*(one(number) for number in range(count)))


async def _sync(count: int, folder: Path) -> tuple[float, float, int]:
    """Return the seconds of a Sync that finds nothing, of one after a boot, and processes."""
    async with house(folder) as zfsilo:
        await fill(zfsilo, count)
        begun = time.perf_counter()
        await zfsilo.service.reconciler.sync_all(caller="bench")
        calm = time.perf_counter() - begun
        zfsilo.host.facts.reboot()
        begun = time.perf_counter()
        report = await zfsilo.service.reconciler.sync_all(caller="bench")
        recovered = time.perf_counter() - begun
        assert report.complaints == ()
        with zfsilo.service.context.store.read() as txn:
            found = list(volume_views(txn))
        run = Counting(found)
        datasets = tuple(each.volume.dataset for each in found if each.volume)
        machine: Host = Seen(run, datasets, folder, zfsilo.service.context.store.chap)  # type: ignore[assignment]
        for each in found:
            assert not compare(each, machine, zfsilo.service.context.settings).problems
        return calm, recovered, run.count


def _pages(count: int, folder: Path) -> float:
    """Return the seconds of a page in the middle of so many records."""
    store = Store.create(folder, host="simulated", size_bytes=1 << 30, durable=False)
    for start in range(0, count, 1000):
        with store.write() as txn:
            for number in range(start, min(count, start + 1000)):
                txn.put(_volume(number))
    times = []
    for _round in range(21):
        begun = time.perf_counter()
        with store.read() as txn:
            found, _after = page(
                txn, after=f"v{(count - PAGE) // 2:06}", limit=PAGE, wanted=lambda _each: True
            )
        times.append(time.perf_counter() - begun)
        assert found
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
    """Measure in one process, over a simulated host; processes over the real adapters."""
    for count in VOLUMES:
        with tempfile.TemporaryDirectory() as folder:
            calm, recovered, processes = asyncio.run(_sync(count, Path(folder)))
        yield Figure(f"Sync of {count} volumes, all well", f"{1e3 * calm:.0f} ms")
        yield Figure(f"Sync of {count} volumes after a boot", f"{1e3 * recovered:.0f} ms")
        yield at_most(f"processes of a look at {count} volumes", processes, PROCESSES, "")
    for count in RECORDS:
        with tempfile.TemporaryDirectory() as folder:
            seconds = _pages(count, Path(folder))
        yield Figure(f"a page of {PAGE} out of {count} records", f"{1e3 * seconds:.2f} ms")

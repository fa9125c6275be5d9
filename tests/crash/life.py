"""One machine through several lives of its daemon: killed, started again, rebooted."""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.crash.saw import Saw, SawnStore
from tests.doubles import SETTINGS, House, OwnServer, ThreadLauncher
from tests.machine import Killed
from zfsilod.engine.worker import work
from zfsilod.host.fake import FakeHost
from zfsilod.host.fake.iscsi import FakeIscsi
from zfsilod.model.errors import PermissionDenied, ZfsiloError
from zfsilod.model.record import CLASSES, Stored, to_plain
from zfsilod.model.records import Operation, PendingRelease
from zfsilod.requests.sync import Supervisor
from zfsilod.service.service import Service
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.crash.saw import How
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.settings import Settings

STUCK_S = 25
FIRST_BOOT = f"{1:032x}"
HISTORY = ("operation", "changed", "meta")  # buckets of what happened, not of what is so
PASSING = ("revision",)
TODAY = 1_800_000_000.0

Dump = tuple[list[tuple[bytes, bytes]], dict[str, Any]]


class Units(ThreadLauncher):
    """Workers in threads that can be killed, and go on when only the daemon is."""

    def __init__(self, store: SawnStore, host: FakeHost) -> None:
        super().__init__(store, host)
        self.saw = store.saw
        self.off = False  # the machine has lost its power

    async def stop(self, operation: Operation) -> None:
        """Kill the unit's worker at its next point; its failure starts the rollback."""
        task = self.tasks.get(operation.unit)
        if task is not None and not task.done():
            self.saw.stopped.add(operation.unit)

    async def rollback(self, operation: Operation) -> None:
        """Start a rollback; one that runs already is joined, as systemd does."""
        task = self.tasks.get(operation.unit)
        if task is None or task.done():
            await super().rollback(operation)

    async def _run(self, unit: str) -> None:
        await self.gate.wait()
        if not await asyncio.to_thread(self._worker, unit, "run"):
            await self._roll_back(unit)
        else:
            self.hint(unit)

    async def _roll_back(self, unit: str) -> None:
        if not self.off:
            await asyncio.to_thread(self._worker, unit, "rollback")
        self.hint(unit)

    def _worker(self, unit: str, request: Any) -> bool:
        """Be the process of a unit; tell whether it ended well."""
        with self.saw.working(unit, request):
            try:
                return not work(self.store, self.host, unit, request)
            except (Killed, ZfsiloError):
                return False


class OwnTargets(FakeIscsi):
    """An initiator of targets on this very host: it is let in where it is admitted, only."""

    def login(self, disk: Disk) -> None:
        if not any(each.startswith(f"{disk.target}/") for each in self.facts.names("acl")):
            raise PermissionDenied(f"the target {disk.target} admits nobody")
        super().login(disk)


class Machine:
    """The store, the host and the units, which outlive the daemon, and the daemon that lives."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.settings = settings
        self.saw = Saw()
        self.saw.on_death = self._die
        self.store = Store.create(directory, host="simulated", size_bytes=64 << 20, durable=False)
        self.host = FakeHost(chap=self.store.chap)
        self.host.iscsi = OwnTargets(self.host.facts)
        self.saw.through(self.host.facts)
        self.units = Units(SawnStore(self.store, self.saw), self.host)
        self.requests: set[asyncio.Task[Any]] = set()
        self.boots = 1
        self._loop = asyncio.get_running_loop()
        self.born()

    # The daemon's lives

    def born(self) -> None:
        """Start a daemon over what is there."""
        self.own_store = SawnStore(self.store, self.saw)
        boot_id = f"{self.boots:032x}"
        os.environ["ZFSILO_BOOT_ID"] = boot_id
        service = Service(
            self.own_store, self.host, self.units, OwnServer(), self.settings, boot_id=boot_id
        )
        self.house = House(service, self.host, self.units)
        self.units.hint = self._hear
        self.supervisor = Supervisor(service, retention_s=1 << 30)
        self.dead = False
        self.stirred = asyncio.Event()  # a unit ended, or the daemon died

    def _die(self, how: How) -> None:
        """Take note, in whichever thread, that the daemon is gone; with it maybe the machine."""
        self.dead = self.own_store.dead = True
        self.units.off = how == "reboot"
        self._loop.call_soon_threadsafe(self.stirred.set)

    def _hear(self, unit: str) -> None:
        """Hear from systemd that a unit ended."""
        self.stirred.set()
        if not self.dead:
            self.house.service.executor.refresh(unit)

    async def bury(self) -> None:
        """Cancel what the dead daemon was at: nothing of it runs on."""
        left = [*self.requests, *self.house.service.executor._tasks]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self.requests.clear()
        await self.house.service.close()

    async def _be_reborn(self) -> None:
        """Start a new daemon after the death of the one before; it looks around at once."""
        await self.bury()
        if self.units.off:
            await asyncio.gather(*self.units.tasks.values(), return_exceptions=True)
            self.reboot()
        self.born()
        with contextlib.suppress(ZfsiloError, Killed):
            await self.supervisor.recover()
        self.saw.resume()

    def reboot(self) -> None:
        """Lose everything that a kernel forgets; at boot the daemon will compare all volumes."""
        self.units.off = False
        self.host.facts.reboot()
        self.boots += 1

    # What happens on it

    def request(self, act: Callable[[House], Awaitable[object]]) -> None:
        """Let a caller ask for something."""
        task: asyncio.Task[object] = asyncio.ensure_future(self._ask(act))
        self.requests.add(task)
        task.add_done_callback(self.requests.discard)

    async def _ask(self, act: Callable[[House], Awaitable[object]]) -> None:
        self.refusal: ZfsiloError | None = None
        try:
            await act(self.house)
        except ZfsiloError as error:
            self.refusal = error
        except Killed:
            pass

    async def settle(self) -> None:
        """Let callers, daemon, systemd and time do what they do, until all came to rest."""
        async with asyncio.timeout(STUCK_S):
            while True:
                self.stirred.clear()
                if self.dead:
                    await self._be_reborn()
                elif self._units():
                    await self._wait(self._busy())
                elif self.live() and await self._look_around():
                    continue
                elif self._busy():
                    await self._wait(self._busy())
                elif self.live():
                    await asyncio.sleep(0)
                elif self.requests:
                    await self._wait(self.requests)
                elif self.owed():
                    self.request(lambda _house: self.supervisor.retry_releases())
                else:
                    return

    async def _look_around(self) -> bool:
        """Let the watchman go round, whatever else the daemon waits for; tell of new units."""
        with contextlib.suppress(ZfsiloError, Killed):
            await self.supervisor.recover()
        return bool(self._units())

    def _units(self) -> set[asyncio.Task[Any]]:
        """Return the units that are at work."""
        return {task for task in self.units.tasks.values() if not task.done()}

    def _busy(self) -> set[asyncio.Task[Any]]:
        """Return what is at work: units, and what the daemon does beside requests."""
        return self._units() | self.house.service.executor._tasks

    async def _wait(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Wait for the first of these, or until a unit ended or the daemon died."""
        stirred = asyncio.ensure_future(self.stirred.wait())
        await asyncio.wait({*tasks, stirred}, return_when=asyncio.FIRST_COMPLETED)
        stirred.cancel()

    async def carry_out(self, act: Callable[[House], Awaitable[object]]) -> None:
        """Ask for something, and wait until all came to rest."""
        self.request(act)
        await self.settle()

    # What is so

    def live(self) -> list[Operation]:
        """Return the operations that have not ended."""
        with self.store.read() as txn:
            return list(txn.live())

    def owed(self) -> list[PendingRelease]:
        """Return what servers were not told yet."""
        with self.store.read() as txn:
            return list(txn.scan(PendingRelease))

    def operations(self) -> list[Operation]:
        """Return all operations, oldest first."""
        with self.store.read() as txn:
            return list(txn.scan(Operation))

    def state(self) -> dict[str, object]:
        """Return everything that is so, flat: facts of the host, records, secrets, claims."""
        found: dict[str, object] = {}
        for name, fact in self.host.facts.snapshot().items():
            _flatten(f"fact {name}", fact, found)
        with self.store.read() as txn:
            for key, raw in txn._range(b"", ""):
                bucket, _, name = key.decode().partition("/")
                if bucket == "secret":
                    found[f"secret {name}"] = self.store.chap(name).values()
                elif bucket in ("claim", "live"):
                    found[f"{bucket} {name}"] = raw
                elif bucket not in HISTORY:
                    record = txn.get(_kind(bucket), name)
                    _flatten(f"record {bucket} {name}", to_plain(record), found)
        return found

    def dump(self) -> Dump:
        """Return all that there is, for `load`."""
        with self.store.read() as txn:
            return list(txn._range(b"", "")), self.host.facts.snapshot()

    async def load(self, dump: Dump) -> None:
        """Make everything as it was at a dump, with a new daemon."""
        await self.bury()
        keys, facts = dump
        with self.store.change() as txn:
            for key, _value in list(txn._range(b"", "")):
                txn._handle.delete(key)
            for key, value in keys:
                txn._handle.put(key, value)
        self.host.facts.memory.clear()
        self.host.facts.memory.update(facts)
        self.units.tasks.clear()
        self.boots = 1
        self.born()


def _kind(bucket: str) -> type[Stored]:
    stored = (each for each in CLASSES.values() if issubclass(each, Stored))
    return next(each for each in stored if each.bucket() == bucket)


def _flatten(name: str, value: Any, found: dict[str, object]) -> None:
    """Spread a nested value over names that say where each part stands."""
    if not isinstance(value, dict):
        found[name] = value
        return
    found[name] = "is there"
    for key, part in value.items():
        if key not in PASSING:
            _flatten(f"{name} {key}", part, found)


class Chance:
    """What is random, replaced by what is counted, so that two runs can be compared."""

    def __init__(self) -> None:
        self.count = self.with_status = 0

    def status(self) -> None:
        """Remember where it stands, for `again`."""
        self.with_status = self.count

    def again(self) -> None:
        """Go back to the mark: the next run draws what the one before drew."""
        self.count = self.with_status

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _bits(self, _count: int) -> int:
        return self._next()

    @contextlib.contextmanager
    def instead(self) -> Iterator[None]:
        """Be all chance that a service draws on."""
        with (
            mock.patch("os.urandom", lambda size: self._next().to_bytes(size, "big")),
            mock.patch("secrets.randbits", self._bits),
            mock.patch("time.time", return_value=TODAY),
            mock.patch("time.time_ns", return_value=int(TODAY * 1e9)),
        ):
            yield


@asynccontextmanager
async def machine(directory: Path, settings: Settings = SETTINGS) -> AsyncIterator[Machine]:
    """Build a machine, with a host `take` registered and the daemon alive."""
    with mock.patch.dict(os.environ, ZFSILO_BOOT_ID=FIRST_BOOT):
        built = Machine(directory, settings)
        try:
            yield built
        finally:
            await built.bury()
            built.store.close()

"""A simulated machine whose daemon and workers can be killed and started again, and which reboots.

The store and the fake host outlive the daemon; workers run in threads in place of units.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from tests.crash.fault_injector import FaultInjector, FaultyStore
from tests.service_fixture import SETTINGS, LocalServer, ServiceFixture, ThreadLauncher
from tests.worker_rig import Killed
from zfsilod.engine.worker import work
from zfsilod.host.fake import FakeHost
from zfsilod.host.fake.iscsi import FakeIscsi
from zfsilod.host.fake.nvme import FakeNvme
from zfsilod.model.errors import PermissionDenied, ZfsiloError
from zfsilod.model.marks import SEALED_KEY
from zfsilod.model.ownership import IDENTITY, StoreIdentity
from zfsilod.model.record import CLASSES, Stored, to_plain
from zfsilod.model.records import Operation, PendingRelease
from zfsilod.service.context import ServiceContext
from zfsilod.service.report_socket import ReportSocket
from zfsilod.service.service import Service
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    from tests.crash.fault_injector import How
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.settings import Settings

T = TypeVar("T")
STUCK_S = 25
FIRST_BOOT = f"{1:032x}"
HISTORY = ("operation", "changed", "meta")  # buckets that record the past, not the present state
IGNORED_FIELDS = ("revision",)

Dump = tuple[list[tuple[bytes, bytes]], dict[str, Any]]


class Units(ThreadLauncher):
    """Workers in threads; each can be killed, and continues when only the daemon is killed."""

    def __init__(self, store: FaultyStore, host: FakeHost) -> None:
        super().__init__(store, host)
        self.injector = store.injector
        self.off = False  # the machine has no power

    async def stop(self, operation: Operation) -> None:
        """Kill the worker of a unit at its next point; the failure starts the rollback."""
        task = self.tasks.get(operation.unit)
        if task is not None and not task.done():
            self.injector.stopped.add(operation.unit)

    async def rollback(self, operation: Operation) -> None:
        """Start a rollback unless it runs already: systemd joins equal jobs."""
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

    def ask(self, operation_id: str) -> None:
        """Ask the daemon for a report, unless it is killed before the answer."""
        with contextlib.suppress(Killed):
            super().ask(operation_id)
        if self.off:
            raise Killed

    def _worker(self, unit: str, process: Any) -> bool:
        """Do the work of a unit; return whether it succeeded."""
        with self.injector.as_worker(unit, process):
            try:
                return not work(self.store, self.host, unit, process, ask=self.ask)
            except (Killed, ZfsiloError):
                return False


class LocalTargets(FakeIscsi):
    """The initiator of this host as a client of its own targets: an ACL must admit it."""

    def login(self, disk: Disk) -> None:
        if not any(acl.startswith(f"{disk.target}/") for acl in self.facts.names("acl")):
            raise PermissionDenied(f"the target {disk.target} has no ACL for this initiator")
        super().login(disk)


class LocalSubsystems(FakeNvme):
    """The same over NVMe."""

    def connect(self, disk: Disk, portals: tuple[str, ...], **options: Any) -> None:
        if not any(acl.startswith(f"{disk.target}/") for acl in self.facts.names("acl")):
            raise PermissionDenied(f"the subsystem {disk.target} allows no host")
        super().connect(disk, portals, **options)


class SimulatedMachine:
    """The store, the fake host and the units, and the daemon that runs over them at present."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.settings = settings
        self.injector = FaultInjector()
        self.injector.on_kill = self._daemon_killed
        self.store = Store.create(directory, host="simulated", size_bytes=64 << 20, durable=False)
        self.host = FakeHost(chap=self.store.chap, key_store=self.store)
        self.host.iscsi = LocalTargets(self.host.facts)
        self.host.nvme = LocalSubsystems(self.host.facts)
        self._identify()
        self.injector.count_effects(self.host.facts)
        self.units = Units(FaultyStore(self.store, self.injector), self.host)
        self.requests: set[asyncio.Task[Any]] = set()
        self.boots = 1
        self._loop = asyncio.get_running_loop()
        self.start_daemon()

    def _identify(self) -> None:
        """Give the store an identity, as the first start of zfsilod does."""
        identity = StoreIdentity(id=IDENTITY, store_id="5" * 32, machine=self.host.machine_id())
        with self.store.write() as txn:
            txn.put(identity.but(root=self.settings.root))

    def start_daemon(self) -> None:
        """Start a daemon over the store and the host."""
        self.daemon_store = FaultyStore(self.store, self.injector)
        boot_id = f"{self.boots:032x}"
        os.environ["ZFSILO_BOOT_ID"] = boot_id
        context = ServiceContext(
            self.daemon_store, self.host, LocalServer(), self.settings, boot_id=boot_id
        )
        service = Service(context, self.units)
        self.background = keep_tasks(service)
        self.fixture = ServiceFixture(service, self.host, self.units)
        service.executor.send = self.fixture.server.send
        self.units.hint = self._unit_ended
        self.units.report = self._report
        self.supervisor = Supervisor(service, retention_s=1 << 30)
        self.dead = False
        self.woken = asyncio.Event()  # set when a unit ends or the daemon is killed

    def _daemon_killed(self, how: How) -> None:
        """Note, in any thread, that the daemon is killed, or that the machine reboots."""
        self.dead = self.daemon_store.dead = True
        self.units.off = how == "reboot"
        self._loop.call_soon_threadsafe(self.woken.set)

    def _unit_ended(self, unit: str) -> None:
        """Pass the signal of systemd that a unit ended to the daemon."""
        self.woken.set()
        if not self.dead:
            self.fixture.service.executor.refresh(unit)

    async def _report(self, operation_id: str) -> None:
        """Perform the report for which a worker waits; it gets no answer from a killed daemon."""
        if not self.dead:
            executor = self.fixture.service.executor
            performed = ReportSocket(executor).perform(operation_id)
            await asyncio.wait({executor.spawn(performed)})

    async def stop_daemon(self) -> None:
        """Cancel all tasks of the daemon, and close it."""
        tasks = [*self.requests, *self.background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.requests.clear()
        await self.fixture.service.close()

    async def _restart_daemon(self) -> None:
        """Start a daemon in place of the killed one; it recovers operations at once."""
        await self.stop_daemon()
        if self.units.off:
            await asyncio.gather(*self.units.tasks.values(), return_exceptions=True)
            self.reboot()
        self.start_daemon()
        with contextlib.suppress(ZfsiloError, Killed):
            await self.supervisor.recover()
        self.injector.resume()

    def reboot(self) -> None:
        """Remove the facts that a kernel forgets; the caller starts the daemon and syncs."""
        self.units.off = False
        self.host.facts.reboot()
        self.boots += 1

    def request(self, act: Callable[[ServiceFixture], Awaitable[object]]) -> None:
        """Make a request in a task of its own."""
        task: asyncio.Task[object] = asyncio.ensure_future(self._ask(act))
        self.requests.add(task)
        task.add_done_callback(self.requests.discard)

    async def _ask(self, act: Callable[[ServiceFixture], Awaitable[object]]) -> None:
        self.refusal: ZfsiloError | None = None
        try:
            await act(self.fixture)
        except ZfsiloError as error:
            self.refusal = error
        except Killed:
            pass

    async def settle(self) -> None:
        """Run callers, daemon and units until no task and no operation is left."""
        async with asyncio.timeout(STUCK_S):
            while True:
                self.woken.clear()
                if self.dead:
                    await self._restart_daemon()
                elif self.busy_units():
                    await self._wait(self._busy())
                elif self.live() and await self._recover():
                    continue
                elif self._busy():
                    await self._wait(self._busy())
                elif self.live():
                    await asyncio.sleep(0)
                elif self.requests:
                    await self._wait(self.requests)
                elif self.pending_releases():
                    self.request(lambda _house: self.supervisor.retry_releases())
                else:
                    return

    async def _recover(self) -> bool:
        """Run a pass of the supervisor; return whether it started a unit."""
        with contextlib.suppress(ZfsiloError, Killed):
            await self.supervisor.recover()
        return bool(self.busy_units())

    def busy_units(self) -> set[asyncio.Task[Any]]:
        """Return the units that run."""
        return {task for task in self.units.tasks.values() if not task.done()}

    def _busy(self) -> set[asyncio.Task[Any]]:
        """Return the units that run and the background tasks of the daemon."""
        return self.busy_units() | self.background

    async def _wait(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Wait for the first of these tasks, the end of a unit, or the death of the daemon."""
        woken = asyncio.ensure_future(self.woken.wait())
        await asyncio.wait({*tasks, woken}, return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()

    async def carry_out(self, act: Callable[[ServiceFixture], Awaitable[object]]) -> None:
        """Make a request, and settle."""
        self.request(act)
        await self.settle()

    def live(self) -> list[Operation]:
        """Return the operations that have not ended."""
        with self.store.read() as txn:
            return list(txn.live())

    def pending_releases(self) -> list[PendingRelease]:
        """Return the releases that servers have not confirmed."""
        with self.store.read() as txn:
            return list(txn.scan(PendingRelease))

    def operations(self) -> list[Operation]:
        """Return all operations, oldest first."""
        with self.store.read() as txn:
            return list(txn.scan(Operation))

    def state(self) -> dict[str, object]:
        """Return facts of the host, records, secrets and claims as one flat mapping."""
        state: dict[str, object] = {}
        for name, fact in self.host.facts.snapshot().items():
            _flatten(f"fact {name}", self._opened(fact), state)
        with self.store.read() as txn:
            for key, raw in txn.items():
                bucket, _, name = key.decode().partition("/")
                if bucket == "secret":
                    state[f"secret {name}"] = self.store.unsealed(name)
                elif bucket in ("claim", "live"):
                    state[f"{bucket} {name}"] = raw
                elif bucket not in HISTORY:
                    record = txn.get(_kind(bucket), name)
                    _flatten(f"record {bucket} {name}", to_plain(record), state)
        return state

    def _opened(self, fact: Any) -> Any:
        """Return the facts of a zvol with its key in the open: each sealing is another text."""
        properties = fact.get("properties", {}) if isinstance(fact, dict) else {}
        if SEALED_KEY not in properties:
            return fact
        *_recorded, carried = self.store.disk_keys(fact["uid"], properties[SEALED_KEY])
        return fact | {"properties": properties | {SEALED_KEY: str(carried.values())}}

    def dump(self) -> Dump:
        """Return the store and the facts, for `load`."""
        with self.store.read() as txn:
            return list(txn.items()), self.host.facts.snapshot()

    async def load(self, dump: Dump) -> None:
        """Restore the store and the facts of a dump, and start a new daemon."""
        await self.stop_daemon()
        pairs, facts = dump
        with self.store.change() as txn:
            for key, _value in list(txn.items()):
                txn.drop_raw(*split_key(key))
            for key, value in pairs:
                txn.put_raw(*split_key(key), value)
        self.host.facts.memory.clear()
        self.host.facts.memory.update(facts)
        self.units.tasks.clear()
        self.boots = 1
        self.start_daemon()


def keep_tasks(service: Service) -> set[asyncio.Task[Any]]:
    """Return a set that holds the background tasks of a service while they run."""
    tasks: set[asyncio.Task[Any]] = set()
    spawn = service.executor.spawn

    def spawn_and_keep(work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = spawn(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    service.executor.spawn = spawn_and_keep  # type: ignore[method-assign]
    return tasks


def _kind(bucket: str) -> type[Stored]:
    stored = (kind for kind in CLASSES.values() if issubclass(kind, Stored))
    return next(kind for kind in stored if kind.bucket() == bucket)


def split_key(key: bytes) -> tuple[str, str]:
    """Return the bucket and the name in a key of LMDB."""
    bucket, _slash, name = key.decode().partition("/")
    return bucket, name


def _flatten(name: str, value: Any, flat: dict[str, object]) -> None:
    """Add a nested value to a flat mapping, one name for each part."""
    if not isinstance(value, dict):
        flat[name] = value
        return
    flat[name] = "exists"
    for key, part in value.items():
        if key not in IGNORED_FIELDS:
            _flatten(f"{name} {key}", part, flat)


@asynccontextmanager
async def simulated_machine(
    directory: Path, settings: Settings = SETTINGS
) -> AsyncIterator[SimulatedMachine]:
    """Build a machine with a running daemon."""
    with mock.patch.dict(os.environ, ZFSILO_BOOT_ID=FIRST_BOOT):
        machine = SimulatedMachine(directory, settings)
        try:
            yield machine
        finally:
            await machine.stop_daemon()
            machine.store.close()

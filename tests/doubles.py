"""A whole zfsilod in one process: real service and store, a fake host, workers in threads."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.examples import HOW, TAKE
from zfsilod.engine import plans
from zfsilod.engine.worker import read_boot_id, work
from zfsilod.host.fake import FakeHost
from zfsilod.model.connection import Connection
from zfsilod.model.errors import FailedPrecondition, NotFound, Unavailable
from zfsilod.model.records import Host, Operation, Publication, Volume
from zfsilod.model.settings import Settings
from zfsilod.requests.hosts import CreateHost
from zfsilod.requests.publications import Publish, ReportFilesystem, Unpublish
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.service.context import ServiceContext
from zfsilod.service.service import Service
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from zfsilod.engine.steps.filesystem import Reported
    from zfsilod.model.chap import Chap
    from zfsilod.requests.request import Request

DEADLINE_S = 20
SETTINGS = Settings(host_id="take", root="tank/zfsilo", export=HOW, overcommit=2.0)


class ThreadLauncher:
    """Runs and rolls back with the real Worker, in a thread instead of a unit."""

    def __init__(self, store: Store, host: FakeHost) -> None:
        self.store = store
        self.host = host
        self.hint: Callable[[str], None] = lambda _id: None
        self.gate = asyncio.Event()  # cleared: what is started waits
        self.gate.set()
        self.refuses = False
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, operation: Operation) -> None:
        if self.refuses:
            raise Unavailable("systemd refused StartTransientUnit")
        self.tasks[operation.unit] = asyncio.create_task(self._run(operation.unit))

    async def rollback(self, operation: Operation) -> None:
        self.tasks[operation.unit] = asyncio.create_task(self._roll_back(operation.unit))

    async def stop(self, operation: Operation) -> None:
        self.tasks[operation.unit].cancel()
        await self.rollback(operation)

    async def running(self) -> set[str]:
        return {name for name, task in self.tasks.items() if not task.done()}

    async def _run(self, unit: str) -> None:
        await self.gate.wait()
        if await asyncio.to_thread(work, self.store, self.host, unit, "run"):
            await self._roll_back(unit)
        self.hint(unit)

    async def _roll_back(self, unit: str) -> None:
        await asyncio.to_thread(work, self.store, self.host, unit, "rollback")
        self.hint(unit)


class LocalServer:
    """This very host as the server of its own volumes; `away` makes it unreachable."""

    service: Service
    away = False

    async def fetch(self, _server: str, volume: str) -> tuple[Connection, Chap]:
        self._reach()
        with self.service.context.store.read() as txn:
            found, published = txn.get(Volume, volume), txn.get(Publication, f"{volume}/take")
        if found is None:
            raise NotFound(f"there is no volume {volume} on this host")
        if published is None:
            raise FailedPrecondition(f"{volume} is not published to take", reason="NOT_PUBLISHED")
        export = self.service.context.settings.export
        connection = Connection(
            volume=volume,
            target=plans.target_name(export.prefix, found),
            portals=export.portals,
            serial=found.uid,
            size_bytes=found.capacity_bytes,
            mode=found.mode,
            epoch=published.epoch,
            rotation=published.rotation,
            readonly=published.readonly,
            filesystem=found.filesystem,
        )
        return connection, self.service.context.store.chap(published.secret)

    async def publish(self, _server: str, volume: str, *, client_operation: str) -> None:
        await self._do(Publish(volume=volume, host="take", client_operation=client_operation))

    async def release(self, _server: str, volume: str, *, client_operation: str) -> None:
        await self._do(Unpublish(volume=volume, host="take", client_operation=client_operation))

    async def report(self, step: Reported, operation: str) -> None:
        await self._do(
            ReportFilesystem(
                volume=step.volume,
                host="take",
                epoch=step.epoch,
                state=step.state,
                type=step.type,
                uuid=step.uuid,
                operation=operation,
            )
        )

    async def usage(self, _server: str, volume: str, *, timeout_s: float) -> dict[str, int]:
        self._reach()
        return self.service.context.machine.zfs.usage(f"tank/zfsilo/{volume}")

    async def publications(self, _server: str) -> list[Publication]:
        self._reach()
        with self.service.context.store.read() as txn:
            return [each for each in txn.scan(Publication) if each.host == "take"]

    async def rotate(self, _server: str, volume: str) -> None:
        await self._do(RotateSecrets(volume=volume, host="take", force=True))

    async def register(self, _server: str, host: Host) -> None:
        await self._do(CreateHost(id=host.id, iqn=host.iqn, register=True))

    def _reach(self) -> None:
        if self.away:
            raise Unavailable("give does not answer")

    async def _do(self, request: Request[Any]) -> None:
        self._reach()
        operation = await self.service.submit(request, caller="host take")
        await self.service.wait(operation.id, DEADLINE_S)


class House:
    """The parts of a running service, and short words for what tests do with it."""

    def __init__(self, service: Service, host: FakeHost, launcher: ThreadLauncher) -> None:
        self.service = service
        self.host = host
        self.launcher = launcher
        self.server = LocalServer()
        self.server.service = service
        service.context.servers = self.server

    async def do(self, *requests: Request[Any]) -> Operation:
        """Carry requests out one after the other; raise what a caller would see."""
        operation = None
        for request in requests:
            begun = await self.service.submit(request, caller="uid 0 (unix)")
            operation = await self.service.wait(begun.id, DEADLINE_S)
        assert operation is not None
        return operation

    @property
    def facts(self) -> dict[str, object]:
        """Everything the fake host is."""
        return self.host.facts.snapshot()


@asynccontextmanager
async def house(directory: Path, settings: Settings = SETTINGS) -> AsyncIterator[House]:
    """Build a service over a new store, with the host `take` registered."""
    store = Store.create(directory, host="simulated", size_bytes=64 << 20, durable=False)
    host = FakeHost(chap=store.chap)
    launcher = ThreadLauncher(store, host)
    context = ServiceContext(store, host, LocalServer(), settings, boot_id=read_boot_id())
    service = Service(context, launcher)
    launcher.hint = service.executor.refresh
    service.context.session_recovery_s = 0  # no session of a fake host comes back by itself
    built = House(service, host, launcher)
    await built.do(CreateHost(id="take", iqn=TAKE))
    try:
        yield built
    finally:
        await service.close()
        await asyncio.gather(*launcher.tasks.values(), return_exceptions=True)
        store.close()

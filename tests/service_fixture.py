"""Service fixture: the real service and store in this process, a fake host, workers in threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.examples import HOW, TAKE
from tests.worker_rig import Killed
from zfsilod.engine import plans
from zfsilod.engine.block_reader import BlockQuery, send_blocks
from zfsilod.engine.stream_link import stream_of
from zfsilod.engine.stream_sender import send_stream
from zfsilod.engine.worker import read_boot_id, work
from zfsilod.gateway import dial
from zfsilod.host.clock import HostClock
from zfsilod.host.fake import FakeHost
from zfsilod.host.replica_protocol import no_stream
from zfsilod.model.connection import Connection
from zfsilod.model.errors import (
    FailedPrecondition,
    NotFound,
    StoreCorrupt,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.identity import Caller
from zfsilod.model.records import Host, Operation, Publication, Snapshot, Volume
from zfsilod.model.replica import ReplicaFacts, SendJob
from zfsilod.model.settings import Settings
from zfsilod.requests.hosts import CreateHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.report_filesystem import ReportFilesystem, known_filesystem
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.service.context import ServiceContext
from zfsilod.service.ownership import compare
from zfsilod.service.retention import SETTLING_S, Retention
from zfsilod.service.service import Service
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from zfsilod.engine.steps.filesystem import Reported
    from zfsilod.engine.steps.replica import Sent
    from zfsilod.model.chap import Chap
    from zfsilod.model.words import Transport
    from zfsilod.requests.request import Request

DEADLINE_S = 20
STORE_BYTES = 64 << 20
MAX_WORKERS = 128  # at one time
SETTINGS = Settings(
    host_id="take", root="tank/zfsilo", export=HOW, adopt_from=("tank/vm-1",), overcommit=2.0
)


def administrator(subject: str) -> Caller:
    """Return a caller with all rights, shown by this name."""
    return Caller(role="admin", subject=subject, origin="", local=True)


class FakeClock(HostClock):
    """A clock that runs as the real one, and that a test may set; it is synchronised."""

    def __init__(self) -> None:
        self.synchronised = True
        self._ahead_s, self._leapt_s = -float(SETTLING_S), 0.0

    def now(self) -> float:
        return time.time() + self._ahead_s + self._leapt_s

    def uptime(self) -> float:
        return super().uptime() + self._ahead_s

    async def is_synchronised(self) -> bool:
        return self.synchronised

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead_s += seconds

    def leap(self, seconds: float) -> None:
        """Set the clock."""
        self._leapt_s += seconds


class ThreadLauncher:
    """Runs the real worker in a thread in place of a unit."""

    def __init__(self, store: Store, host: FakeHost) -> None:
        self.store = store
        self.host = host
        self.hint: Callable[[str], None] = lambda _id: None
        self.gate = asyncio.Event()  # cleared: started workers wait
        self.gate.set()
        self.refuses = False
        self.starts: list[str] = []  # the units of workers
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.report: Callable[[str], Awaitable[None]] | None = None  # None: no daemon answers
        self.answers: set[asyncio.Task[None] | None] = set()
        self.stopped: set[str] = set()
        self.folder = ""  # of the socket for readers of blocks
        self.readers: dict[str, asyncio.Future[None]] = {}
        self.titles: list[str] = []  # of the readers that were started
        self._loop = asyncio.get_running_loop()
        # A worker that waits for a report keeps its thread, as a unit keeps its process.
        self.threads = ThreadPoolExecutor(MAX_WORKERS)

    async def start(self, operation: Operation, *_others: Operation) -> None:
        if self.refuses:
            raise Unavailable("systemd refused StartTransientUnit")
        self.starts.append(operation.unit)
        self.tasks[operation.unit] = asyncio.create_task(self._run(operation.unit))

    async def rollback(self, operation: Operation) -> None:
        self.tasks[operation.unit] = asyncio.create_task(self._roll_back(operation.unit))

    async def stop(self, operation: Operation) -> None:
        if operation.unit not in self.tasks:
            return  # systemd refuses to stop a unit that does not exist
        self.stopped.add(operation.unit)
        self.tasks[operation.unit].cancel()
        await self.rollback(operation)

    async def start_reader(self, ticket: str, words: tuple[str, ...], title: str) -> None:
        if self.refuses:
            raise Unavailable("systemd refused StartTransientUnit")
        self.titles.append(title)
        self.readers[ticket] = self._loop.run_in_executor(
            self.threads, partial(self._read, ticket, words)
        )

    def _read(self, ticket: str, words: tuple[str, ...]) -> None:
        query = BlockQuery.parsed(list(words))
        with contextlib.suppress(ZfsiloError, OSError):
            send_blocks(self.host, None, self.folder, ticket, query)

    async def stop_reader(self, ticket: str) -> None:
        if ticket in self.readers:  # its start may have failed
            await self.readers.pop(ticket)

    async def start_sender(self, ticket: str, words: tuple[str, ...], title: str) -> None:
        self.titles.append(title)
        send = partial(self._send, ticket, words)
        self.readers[f"{ticket} send"] = self._loop.run_in_executor(self.threads, send)

    async def start_dialer(self, ticket: str, control: int, title: str) -> None:
        own = socket.socket(fileno=os.dup(control))
        own.setblocking(True)
        carry = partial(_carry, own)
        self.readers[f"{ticket} dial"] = self._loop.run_in_executor(self.threads, carry)

    def _send(self, ticket: str, words: tuple[str, ...]) -> None:
        job = SendJob.parsed(list(words))
        with contextlib.suppress(ZfsiloError, OSError):
            send_stream(self.host, None, self.folder, ticket, job)

    async def stop_stream(self, ticket: str) -> None:
        for name in ("dial", "send"):
            await self.stop_reader(f"{ticket} {name}")

    def stream_of(self, operation: str) -> int:
        """Return the stream of an operation, as a worker gets it."""
        stream = stream_of(self.folder, operation)
        return stream if stream >= 0 else no_stream(operation)

    async def running(self) -> set[str]:
        return {name for name, task in self.tasks.items() if not task.done()}

    async def _run(self, unit: str) -> None:
        await self.gate.wait()
        run = partial(work, self.store, self.host, unit, "run", ask=self.ask)
        if await self._loop.run_in_executor(self.threads, run):
            await self._roll_back(unit)
        self.hint(unit)

    def ask(self, operation_id: str) -> None:
        """Ask the daemon for a report, in the thread of a worker: ReportSocket without a socket."""
        if self.report is not None:
            asyncio.run_coroutine_threadsafe(self._answer(operation_id), self._loop).result()
        if operation_id in self.stopped:
            raise Killed

    async def _answer(self, operation_id: str) -> None:
        assert self.report is not None, "the daemon answers"
        self.answers.add(asyncio.current_task())
        with contextlib.suppress(ZfsiloError):
            await self.report(operation_id)

    async def _roll_back(self, unit: str) -> None:
        rollback = partial(work, self.store, self.host, unit, "rollback")
        await self._loop.run_in_executor(self.threads, rollback)
        self.hint(unit)


def _carry(control: socket.socket) -> None:
    with control, contextlib.suppress(OSError):
        dial.run(control)


PEERS = ("other", "peer")  # servers that volumes may be sent to


class LocalServer:
    """This host as the server of its own volumes; `away` makes it unreachable."""

    service: Service
    away = False

    async def fetch(self, _server: str, volume: str) -> tuple[Connection, Chap]:
        self._reach()
        with self.service.context.store.read() as txn:
            record = txn.get(Volume, volume)
        if record is None:
            raise NotFound(f"there is no volume {volume} on this host")
        self._publication(volume)
        filesystem = await known_filesystem(self.service.context, record)
        publication = self._publication(volume)
        export = self.service.context.settings.export
        connection = Connection(
            volume=volume,
            target=plans.target_name(export.prefix, record),
            portals=export.portals_of(publication.transport, tls=publication.tls),
            tls=publication.tls,
            serial=record.uid,
            size_bytes=record.capacity_bytes,
            mode=record.mode,
            epoch=publication.epoch,
            rotation=publication.rotation,
            readonly=publication.readonly,
            filesystem=filesystem,
            by_controller=publication.by_controller,
        )
        try:
            return connection, self.service.context.store.chap(publication.secret)
        except StoreCorrupt:
            self._publication(volume)  # raises when it was withdrawn since it was read
            raise

    def _publication(self, volume: str) -> Publication:
        with self.service.context.store.read() as txn:
            publication = txn.get(Publication, f"{volume}/take")
        if publication is None:
            raise FailedPrecondition(f"{volume} is not published to take", reason="NOT_PUBLISHED")
        return publication

    async def publish(
        self,
        _server: str,
        volume: str,
        *,
        client_operation: str,
        transport: Transport | Literal[""] = "",
        tls: bool = False,
    ) -> None:
        request = Publish(volume=volume, host="take", client_operation=client_operation)
        await self._do(request.but(transport=transport, tls=tls))

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

    async def replica(self, server: str, _volume: str, uid: str, *, wait: bool) -> ReplicaFacts:
        self._reach()
        facts = self.service.context.machine.facts  # type: ignore[attr-defined]
        if role := facts.get("peer role") or facts.get(f"peer role {server}"):
            if role.get("silent"):
                raise Unavailable("other does not answer", reason="SERVER_UNAVAILABLE")
            return ReplicaFacts(exists=True, is_primary=True, **role)
        guid = facts.get(f"sent:{uid}") or ""
        return ReplicaFacts(exists=bool(guid), guid=guid)

    async def send(self, step: Sent, _operation: Operation) -> None:
        """Send a snapshot in place of service/replication.py: a fact, as of the peer's pool."""
        self._reach()
        with self.service.context.store.read() as txn:
            snapshot = txn.get(Snapshot, step.snapshot)
        assert snapshot is not None
        facts = self.service.context.machine.facts  # type: ignore[attr-defined]
        facts.effect(f"sent:{snapshot.volume_uid}", snapshot.guid)

    def offer(
        self, volume: Volume, snapshot: Snapshot, base_guid: str, *, raw: bool, attempt: str
    ) -> str:
        raise FailedPrecondition("no stream leads to a peer of these tests")

    def refusal(self, server: str, body: str, status: int) -> ZfsiloError:
        raise NotImplementedError

    def access(self, server: str) -> dict[str, str]:
        if server not in PEERS:
            raise NotFound(f"server {server} is not configured", reason="NO_SERVER")
        return {"address": server}

    async def usage(self, _server: str, volume: str, *, timeout_s: float) -> dict[str, int]:
        self._reach()
        return self.service.context.machine.zfs.usage(f"tank/zfsilo/{volume}")

    def problem(self, _server: str) -> str:
        return ""

    async def publications(self, _server: str) -> list[Publication]:
        self._reach()
        with self.service.context.store.read() as txn:
            return [record for record in txn.scan(Publication) if record.host == "take"]

    async def portals(self, _server: str, transport: Transport, *, tls: bool) -> tuple[str, ...]:
        self._reach()
        return self.service.context.settings.export.portals_of(transport, tls=tls)

    async def rotate(self, _server: str, volume: str) -> None:
        await self._do(RotateSecrets(volume=volume, host="take", force=True))

    async def register(self, _server: str, host: Host, *, validate_only: bool = False) -> bool:
        assert not validate_only
        await self._do(CreateHost(id=host.id, iqn=host.iqn, register=True))
        return True

    def _reach(self) -> None:
        if self.away:
            raise Unavailable("give does not answer")

    async def _do(self, request: Request[Any]) -> None:
        self._reach()
        operation = await self.service.submit(request, caller=administrator("host take"))
        await self.service.wait(operation.id, DEADLINE_S)


class ServiceFixture:
    """A running service, its fake host and launcher, and short calls for tests."""

    def __init__(self, service: Service, host: FakeHost, launcher: ThreadLauncher) -> None:
        self.service = service
        self.clock = FakeClock()
        service.context.retention = Retention(self.clock)
        self.clock.advance(SETTLING_S)  # to the real time
        self.host = host
        self.launcher = launcher
        self.server = LocalServer()
        self.server.service = service
        service.context.servers = self.server

    async def do(self, *requests: Request[Any], caller: Caller | None = None) -> Operation:
        """Make requests one after the other; raise the error that a caller would see."""
        operation, caller = None, caller or administrator("uid 0 (unix)")
        for request in requests:
            submitted = await self.service.submit(request, caller=caller)
            operation = await self.service.wait(submitted.id, DEADLINE_S)
        assert operation is not None
        return operation

    async def refuses(self, request: Request[Any], error: type[ZfsiloError], reason: str) -> None:
        """Check that a request fails for a reason, and changes nothing on the host."""
        facts = self.facts
        with pytest.raises(error) as caught:
            await self.do(request)
        assert caught.value.reason == reason
        assert self.facts == facts

    @property
    def facts(self) -> dict[str, object]:
        """All facts of the fake host."""
        return self.host.facts.snapshot()


@asynccontextmanager
async def service_fixture(
    directory: Path,
    settings: Settings = SETTINGS,
    *,
    store_bytes: int = STORE_BYTES,
    facts: Path | None = None,
) -> AsyncIterator[ServiceFixture]:
    """Build a service over the store of a directory, with the host `take` registered.

    `facts`: the file of a machine that outlives the service.
    """
    store = Store.create(directory, host="simulated", size_bytes=store_bytes, durable=False)
    store.prepare_key()  # as a daemon does
    host = FakeHost(facts, chap=store.chap, key_store=store)
    launcher = ThreadLauncher(store, host)
    context = ServiceContext(store, host, LocalServer(), settings, boot_id=read_boot_id())
    service = Service(context, launcher)
    launcher.hint = service.executor.refresh
    launcher.report = service.executor.report_for_worker
    service.context.session_recovery_s = 0  # a lost session of a fake host never recovers
    built = ServiceFixture(service, host, launcher)
    await service.context.retention.now()  # the clock is trusted
    await built.do(CreateHost(id="take", iqn=TAKE))
    await compare(context)  # as a daemon does
    launcher.folder = tempfile.mkdtemp()  # the path of a socket is short
    await service.blocks.open(launcher.folder)
    service.streams.open(launcher.folder)
    host.open_stream = launcher.stream_of
    try:
        yield built
    finally:
        await service.blocks.close()
        service.streams.close()
        shutil.rmtree(launcher.folder)
        await service.close()
        await asyncio.gather(*launcher.tasks.values(), return_exceptions=True)
        await asyncio.gather(*filter(None, launcher.answers), return_exceptions=True)
        launcher.threads.shutdown()
        store.close()

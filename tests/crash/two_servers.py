"""Two servers that replicate one volume, with random requests, cuts, reboots and partitions.

The servers ask each other in this process, in place of the network; all else is the real service.
The administrator is honest: the word that a server is off is given only while it is off. After each
step at most one server admits a client, no replica is exported, what was promoted is what was
received, and what a former primary had is still there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.crash import cases
from tests.crash.fault_injector import Fault
from tests.crash.simulated_machine import SimulatedMachine, Units
from tests.service_fixture import SETTINGS, LocalServer, administrator
from zfsilod.model.errors import NotFound, Unavailable
from zfsilod.model.identity import DAEMON, Caller
from zfsilod.model.ownership import IDENTITY, StoreIdentity
from zfsilod.model.records import Publication, Snapshot, Volume
from zfsilod.model.replica import ReplicaFacts, SendJob
from zfsilod.requests.aside import DemoteVolume
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.promotion import PromoteVolume
from zfsilod.requests.publications import Unpublish
from zfsilod.requests.receive import ReceiveReplica
from zfsilod.requests.replication import EndReplication, ReplicateVolume

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.report import CrashReport, Size
    from zfsilod.engine.steps.replica import Sent
    from zfsilod.model.records import Operation
    from zfsilod.requests.request import Request

NAMES = ("give", "other")
STEPS = 30
SEQUENCES = {"short": 40, "full": 2000, "long": 10_000}
WAIT_S = 20.0
Blocks = dict[str, str]


class Boot(threading.local):
    """The boot id that a worker of this thread sees."""

    id = ""


BOOT = Boot()


def _boot_of_worker() -> str:
    return BOOT.id


class OwnUnits(Units):
    """Workers that see the boot id of their machine."""

    boot: Callable[[], str]

    def _worker(self, unit: str, process: Any) -> bool:
        BOOT.id = self.boot()
        return super()._worker(unit, process)


class PairedServer(SimulatedMachine):
    """One of the servers."""

    def __init__(self, name: str, world: World, directory: Path) -> None:
        self.name, self.world, self.off = name, world, False
        super().__init__(directory, SETTINGS.but(host_id=name))

    def _identify(self) -> None:
        super()._identify()
        with self.store.write() as txn:
            identity = txn.get(StoreIdentity, IDENTITY)
            assert identity is not None, "it was written"
            number = NAMES.index(self.name) + 1
            txn.put(identity.but(store_id=f"{number:032x}"))

    def start_daemon(self) -> None:
        """Start a daemon that knows the other server."""
        if not isinstance(self.units, OwnUnits):
            self.units = OwnUnits(self.units.store, self.host)  # type: ignore[arg-type]
            self.units.boot = lambda: f"{self.boots:032x}"
        super().start_daemon()
        link = Link(self)
        service = self.fixture.service
        link.service = service
        self.fixture.server = link
        service.context.servers = link
        service.executor.send = link.send
        with self.store.write() as txn:
            service.primaries.withhold(txn)

    def live(self) -> list[Operation]:
        """Return the operations that have not ended, and do not wait for the word of the peer."""
        primaries = self.fixture.service.primaries
        with self.store.read() as txn:
            return [one for one in txn.live() if not primaries.keeps_back(txn, one)]

    def volumes(self) -> dict[str, Volume]:
        with self.store.read() as txn:
            return {one.id: one for one in txn.scan(Volume)}

    def blocks(self, volume: Volume) -> Blocks:
        kind = "replica-blocks" if volume.is_replica else "blocks"
        return dict(self.host.facts.snapshot().get(f"{kind}:{volume.uid}") or {})

    def admits(self, uid: str) -> bool:
        """Tell whether a client can write the volume here."""
        facts = self.host.facts.snapshot()
        acls = [name for name in facts if name.startswith("acl:") and f":{uid}/" in name]
        return not self.off and bool(acls) and f"backstore:zfsilo-{uid}" in facts


class Link(LocalServer):
    """What a server asks the other one, and sends to it."""

    def __init__(self, here: PairedServer) -> None:
        self.here = here

    def _there(self) -> PairedServer:
        there = self.here.world.other(self.here)
        if there.off or self.here.world.parted:
            raise Unavailable(f"{there.name} does not answer", reason="SERVER_UNAVAILABLE")
        return there

    async def replica(self, server: str, volume: str, uid: str, *, wait: bool) -> ReplicaFacts:
        there = self._there()
        assert server == there.name
        try:
            record = await there.fixture.service.primaries.answer(volume, uid)
        except NotFound:
            return ReplicaFacts()
        role: dict[str, Any] = {
            "term": record.term,
            "term_store": record.term_store,
            "exists": True,
        }
        if record.is_replica and record.replica.peer == self.here.name:
            facts = there.host.replicas.find(record.dataset, uid=uid)
            return facts.but(**role)
        return ReplicaFacts(is_primary=not record.is_replica, **role)

    async def send(self, step: Sent, _operation: Operation) -> None:
        there = self._there()
        with self.here.store.read() as txn:
            snapshot, volume = txn.get(Snapshot, step.snapshot), txn.get(Volume, step.volume)
        assert snapshot is not None
        assert volume is not None
        job = SendJob(
            dataset=volume.dataset,
            volume_uid=volume.uid,
            uid=snapshot.uid,
            guid=snapshot.guid,
            base_uid=step.base_uid,
            base_guid=step.base_guid,
        )

        def open_stream(_operation: str) -> int:
            output, stream = socket.socketpair()
            with output:  # it is small: a socket holds it
                self.here.host.replicas.send(job, output.fileno())
            return stream.detach()

        there.host.open_stream = open_stream
        facts = self.here.host.facts.snapshot()
        sent = facts[f"cut:{snapshot.uid}"]["blocks"].get(volume.uid, {})
        self.here.world.sent[snapshot.guid] = dict(sent)
        request = ReceiveReplica(
            id=step.volume,
            peer=self.here.name,
            uid=volume.uid,
            capacity_bytes=snapshot.size_bytes,
            volblocksize=snapshot.volblocksize,
            mode=snapshot.mode,
            filesystem=snapshot.filesystem,
            snapshot_uid=snapshot.uid,
            snapshot_guid=snapshot.guid,
            base_guid=step.base_guid,
            taken_at=snapshot.created_at,
            term=volume.term,
            term_store=volume.term_store,
            stream=_operation.id,
        )
        service = there.fixture.service
        caller = Caller(role="replica", subject=self.here.name, origin="a test")
        receiving = await service.submit(request, caller=caller)
        await service.wait(receiving.id, WAIT_S)


class World:
    """Both servers, the network between them, and what was written."""

    def __init__(self, directory: Path, dice: random.Random) -> None:
        self.dice = dice
        self.parted = False
        self.sent: dict[str, Blocks] = {}  # by the guid of a snapshot
        self.written = 0
        self.log: list[str] = []
        self.servers = [PairedServer(name, self, directory / name) for name in NAMES]

    def other(self, server: PairedServer) -> PairedServer:
        """Return the peer of a server."""
        return self.servers[1 - self.servers.index(server)]

    async def start(self) -> None:
        """Register a client at both servers, and make the volume on the first."""
        for server in self.servers:
            await server.fixture.do(cases.HOST)
        await self.servers[0].fixture.do(cases.CREATE)

    async def close(self) -> None:
        """Stop the daemons."""
        for server in self.servers:
            if not server.off:
                await server.stop_daemon()
            server.store.close()

    async def step(self) -> None:
        """Make one random step, and check the invariants."""
        server = self.dice.choice(self.servers)
        act = self.dice.choices([act for act, _weight in ACTS], [w for _act, w in ACTS])[0]
        if server.off and act is not World.power:
            return
        before = {one.name: _primary(one) for one in self.servers}
        self.log.append(f"{act.__name__} {server.name}")
        await act(self, server)
        for one in self.servers:
            if not one.off:
                one.injector.set()
                await one.settle()
        self._check(before)

    def _faults(self) -> tuple[Fault, ...]:
        """Return no fault in two of three requests, else one at a random point."""
        if self.dice.random() < 2 / 3:
            return ()
        how = self.dice.choice(("error", "kill worker", "kill daemon", "reboot"))
        process = "daemon" if how != "kill worker" and self.dice.random() < 1 / 4 else "run"
        when = self.dice.choice(("before", "after"))
        fault = Fault(process, self.dice.randint(1, 14), when, how)  # type: ignore[arg-type]
        self.log.append(f"  {fault}")
        return (fault,)

    async def request(self, server: PairedServer, request: Request[Any]) -> bool:
        """Make a request, maybe with a fault; tell whether it was done."""
        known = {operation.id for operation in server.operations()}
        server.injector.set(*self._faults())
        await server.carry_out(
            lambda fixture: fixture.service.submit(request, caller=administrator("x"))
        )
        new = [one for one in server.operations() if one.id not in known]
        done = any(one.kind == request.kind and one.state == "DONE" for one in new)
        self.log.append(f"  {request.kind}: {'done' if done else server.refusal}")
        return done

    async def write(self, server: PairedServer) -> None:
        """A client writes where it can."""
        volume = server.volumes().get("data")
        if volume is not None and server.admits(volume.uid):
            self.written += 1
            number = str(self.dice.randint(0, 5))
            blocks = server.blocks(volume) | {number: f"{server.name} {self.written}"}
            server.host.facts.memory[f"blocks:{volume.uid}"] = blocks

    async def publish(self, server: PairedServer) -> None:
        """The volume is published to the client, or withdrawn."""
        with server.store.read() as txn:
            published = txn.get(Publication, "data/take") is not None
        withdraw = Unpublish(volume="data", host="take", fence=True, grace_s=0)
        await self.request(server, withdraw if published else cases.PUBLISH)

    async def replicate(self, server: PairedServer) -> None:
        """The volume is sent to the other server."""
        await self.request(server, ReplicateVolume(id="data", peer=self.other(server).name))

    async def promote(self, server: PairedServer) -> None:
        """The server is promoted; that the other one is off is said only while it is."""
        volume = server.volumes().get("data")
        request = PromoteVolume(id="data", primary_is_off=self.other(server).off)
        done = await self.request(server, request)
        now = server.volumes().get("data")
        if done and volume is not None and volume.is_replica and now is not None:
            assert not now.is_replica
            assert server.blocks(now) == self.sent[volume.replica.snapshot_guid]

    async def demote(self, server: PairedServer) -> None:
        """The volume is handed over to the other server."""
        await self.request(server, DemoteVolume(id="data", peer=self.other(server).name))

    async def end(self, server: PairedServer) -> None:
        """The replication to the other server ends."""
        await self.request(server, EndReplication(id="data", peer=self.other(server).name))

    async def drop(self, server: PairedServer) -> None:
        """A replica is deleted."""
        volume = server.volumes().get("data")
        if volume is not None and volume.is_replica:
            await self.request(server, DeleteVolume(id="data"))

    async def look(self, server: PairedServer) -> None:
        """The daemon asks the peer, and restores what differs."""
        server.injector.set(*self._faults())
        await server.carry_out(lambda fixture: fixture.service.reconciler.sync_all(DAEMON))

    async def restart(self, server: PairedServer) -> None:
        """The daemon is restarted."""
        await server.stop_daemon()
        server.start_daemon()
        await server.supervisor.recover()

    async def power(self, server: PairedServer) -> None:
        """The server loses its power, or boots."""
        if not server.off:
            await server.stop_daemon()
            server.reboot()
            server.off = True
            return
        server.off = False
        server.start_daemon()
        await server.supervisor.recover()
        await server.carry_out(lambda fixture: fixture.service.reconciler.sync_all(DAEMON))

    async def part(self, _server: PairedServer) -> None:
        """The network between the servers breaks, or works again."""
        self.parted = not self.parted

    def _check(self, before: dict[str, tuple[Volume, Blocks] | None]) -> None:
        writers = []
        for server in self.servers:
            volumes = server.volumes()
            datasets = {one.dataset for one in volumes.values() if one.is_replica}
            facts = server.host.facts.snapshot()
            exports = [fact for name, fact in facts.items() if name.startswith("backstore:")]
            published = [one for one in exports if one["dataset"] in datasets]
            assert not published, "a replica is exported"
            writers += [server.name for one in volumes.values() if self._writes(server, one)]
            was = before[server.name]
            if was is not None and (uid := was[0].uid) and _primary(server) is None:
                kept = [server.blocks(one) for one in volumes.values() if _has(one, uid)]
                assert was[1] in kept, f"{server.name} had {was[1]}, and has {kept}"
        assert len(writers) < 2, f"two servers admit a client: {writers}"

    def _writes(self, server: PairedServer, volume: Volume) -> bool:
        return volume.id == "data" and server.admits(volume.uid)

    async def heal(self) -> None:
        """Both servers run and see each other: one serves the volume at most, and sends it."""
        self.parted = False
        self.dice = random.Random(0)
        self._faults = tuple  # type: ignore[method-assign]
        for server in self.servers:
            if server.off:
                await self.power(server)
            server.fixture.service.context.promoting.clear()  # it is for some seconds
        for _round in range(2):
            for server in self.servers:
                await self.look(server)
        primaries = [one for one in self.servers if _primary(one) is not None]
        assert len(primaries) < 2, "two servers have the volume"
        for server in primaries:
            there = self.other(server).volumes().get("data")
            assert there is None or there.is_replica
            send = ReplicateVolume(id="data", peer=self.other(server).name)
            if not await self.request(server, send):  # what the peer has is of before
                await self.drop(self.other(server))
                assert await self.request(server, send), server.refusal


def _has(volume: Volume, uid: str) -> bool:
    """Tell whether a volume may have what the primary with a uid had."""
    return volume.aside_of == "data" or volume.uid == uid


def _primary(server: PairedServer) -> tuple[Volume, Blocks] | None:
    volume = server.volumes().get("data")
    return None if volume is None or volume.is_replica else (volume, server.blocks(volume))


ACTS: tuple[tuple[Any, int], ...] = (
    (World.write, 6),
    (World.publish, 4),
    (World.replicate, 5),
    (World.promote, 5),
    (World.demote, 3),
    (World.end, 1),
    (World.drop, 1),
    (World.look, 3),
    (World.restart, 1),
    (World.power, 4),
    (World.part, 2),
)


async def run_sequence(directory: Path, number: int, steps: int = STEPS) -> None:
    """Run one sequence of random steps. Raises AssertionError with all its steps."""
    for name in NAMES:
        (directory / name).mkdir()
    world = World(directory, random.Random(number))
    try:
        await world.start()
        for _step in range(steps):
            await world.step()
        await world.heal()
    except (AssertionError, TimeoutError) as error:
        said = "\n".join((f"sequence {number}: {error!r}", *world.log))
        raise AssertionError(said) from error
    finally:
        await world.close()


def check_sequences(first: int, count: int, note: Callable[[str], None]) -> None:
    """Run so many sequences from a number on, and note the problem of each; "": it has none."""
    with (
        mock.patch("zfsilod.service.supervisor.REPAIR_PAUSES_S", (0,)),
        mock.patch("zfsilod.engine.worker.read_boot_id", _boot_of_worker),
        mock.patch.dict(os.environ, ZFSILO_BOOT_ID="1"),
    ):
        for number in range(first, first + count):
            problem = ""
            with tempfile.TemporaryDirectory() as directory:
                try:
                    asyncio.run(run_sequence(Path(directory), number))
                except AssertionError as error:
                    problem = str(error)
            note(problem)


def run(report: CrashReport, *, size: Size, seed: int) -> None:
    """Run many sequences."""
    logging.disable(logging.ERROR)
    check_sequences(
        seed * 100_000,
        SEQUENCES[size],
        lambda problem: report.case("all", "two servers", problem),
    )
    logging.disable(logging.NOTSET)

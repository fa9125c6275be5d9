"""A store that was restored, moved or cloned, and a pool that is not the one that it claimed."""

from __future__ import annotations

import asyncio
import shutil
import time
from argparse import Namespace
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import SETTINGS, ServiceFixture, administrator, service_fixture
from zfsilod.config import Config
from zfsilod.daemon import Paths, serve
from zfsilod.engine.worker import work
from zfsilod.model.errors import FailedPrecondition, Unavailable, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.ownership import parse_owner
from zfsilod.model.records import Attachment, Failure, Operation, Publication, Volume
from zfsilod.requests.connect import Connect, FollowServer
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect, EndSession, EndWait
from zfsilod.requests.hosts import UpdateHost
from zfsilod.requests.orphans import RemoveOrphans
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.requests.snapshots import CreateSnapshot
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.ownership import bind_machine, compare
from zfsilod.service.pool_import import PoolImport, adopt_all
from zfsilod.service.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from zfsilod.requests.request import Request

GIB = 1 << 30
ROOT = SETTINGS.root
OWNER = f"owner:{ROOT}"
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
SERVER_REQUESTS: tuple[Request[Any], ...] = (
    CreateVolume(id="new", capacity_bytes=GIB),
    CREATE,
    DeleteVolume(id="data"),
    DeleteVolume(id="unknown-to-this-store"),
    Publish(volume="data", host="take"),
    Unpublish(volume="data", host="take"),
    CreateSnapshot(volume="data", id="monday"),
    SyncVolume(id="data"),
    RemoveOrphans(names=("zvol/tank/zfsilo/data",)),
    RotateSecrets(volume="data", host="take"),
    UpdateHost(id="take", mask=("machine",)),
    UpdateVolume(id="data", mask=("hosts",), hosts=()),
)

# They change what this host uses of another server.
CLIENT_REQUESTS: tuple[Request[Any], ...] = (
    Connect(id="far", server="far", volume="data"),
    FollowServer(id="far"),
    EndSession(id="far", epoch=1),
    EndWait(id="far"),
    Disconnect(id="far"),
)


class StartedDaemon:
    """A daemon on a simulated machine: its service and its supervisor."""

    def __init__(self, fixture: ServiceFixture) -> None:
        self.fixture = fixture
        self.service = fixture.service
        self.context = fixture.service.context
        self.facts = fixture.host.facts
        self.supervisor = Supervisor(fixture.service, retention_s=86400)

    async def refusal(self, request: Request[Any]) -> str:
        """Return the reason for which a request is refused."""
        reason = await self.outcome(request)
        assert reason, request
        return reason

    async def outcome(self, request: Request[Any]) -> str:
        """Return the reason for which a request is refused; "": it was carried out."""
        try:
            await self.fixture.do(request)
        except ZfsiloError as error:
            return error.reason
        return ""

    @property
    def holds(self) -> list[str]:
        return [hold.reason for hold in self.context.ownership.holds]

    @property
    def generation(self) -> int:
        owner = parse_owner(self.facts.get(OWNER) or "")
        return owner.generation if owner else 0

    async def adopt(self, *, take_over: bool = False) -> PoolImport:
        caller = administrator("uid 0 (unix)")
        return await adopt_all(self.context, self.service, caller, take_over=take_over)


@asynccontextmanager
async def daemon(state: Path, pool: Path, *, claims: bool = True) -> AsyncIterator[StartedDaemon]:
    """Start a daemon over a state directory and a file of facts, as zfsilod does."""
    async with service_fixture(state, facts=pool) as fixture:
        started = StartedDaemon(fixture)
        try:
            await compare(started.context)
            await started.supervisor.recover()
            if claims:
                await started.supervisor.follow_pool()
            yield started
        finally:
            await fixture.service.executor.close()
            for task in fixture.launcher.tasks.values():  # workers of a power cut
                task.cancel()


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return tmp_path / "facts.json"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_each_start_counts_the_generation_up(state: Path, pool: Path) -> None:
    for generation in (1, 2, 3):
        async with daemon(state, pool) as started:
            assert (started.generation, started.holds) == (generation, [])
            await started.supervisor.follow_pool()
            assert started.generation == generation  # once for each start


async def restored(state: Path, pool: Path, *, create: bool = False) -> None:
    """Leave a store of yesterday: today it was started once more and made a volume.

    `create`: the backup was made while that creation ran.
    """
    async with daemon(state, pool) as started:
        backup = state.with_name("backup")
        if not create:
            await started.fixture.do(CREATE)
            shutil.copytree(state, backup)
            return
        started.fixture.launcher.gate.clear()
        operation = await started.service.submit(CREATE, caller=DAEMON)
        shutil.copytree(state, backup)
        started.fixture.launcher.gate.set()
        await started.service.wait(operation.id, 20)


async def put_back(state: Path, pool: Path) -> None:
    async with daemon(state, pool):  # today
        pass
    shutil.rmtree(state)
    state.with_name("backup").rename(state)


async def test_a_restored_store_changes_nothing(state: Path, pool: Path) -> None:
    await restored(state, pool)
    await put_back(state, pool)
    async with daemon(state, pool) as started:
        assert started.holds == ["POOL_NEWER"]
        before = started.facts.snapshot()
        for request in SERVER_REQUESTS:
            assert await started.refusal(request) == "POOL_NEWER", request
        for request in CLIENT_REQUESTS:
            assert await started.outcome(request) != "POOL_NEWER", request
        assert await started.refusal(Connect(id="data", server="give", volume="data")) != ""
        with pytest.raises(FailedPrecondition, match="zfsiloctl adopt --all"):
            await started.service.reconciler.sync_all(administrator("uid 0 (unix)"))
        report = await started.service.reconciler.sync_all(DAEMON)
        assert (report.volumes, report.unfinished) == (0, True)
        await started.supervisor.act()
        assert started.facts.snapshot() == before
        with started.context.read() as txn:
            assert txn.get(Volume, "data") is not None  # reads work
        await started.adopt()
        assert started.holds == []
        await started.fixture.do(Publish(volume="data", host="take"))
        await started.supervisor.follow_pool()
        assert started.generation == 3  # the adoption claimed it: once for each start


async def test_a_restored_store_rolls_nothing_back(state: Path, pool: Path) -> None:
    """A1: the creation of a volume in use was rolled back, and the volume destroyed."""
    await restored(state, pool, create=True)
    await put_back(state, pool)
    async with daemon(state, pool) as started:
        with started.context.read() as txn:
            live = [operation for operation in txn.live() if operation.kind == "create"]
        # The backup was made while `zfs create` ran.
        (operation,) = live
        begun = operation.with_status(0, "STARTED")
        operation = await started.context.write(lambda txn: txn.put(begun))
        await started.supervisor.recover()
        assert started.fixture.launcher.tasks == {}
        assert await started.refusal(CREATE) == "POOL_NEWER"
        with pytest.raises(FailedPrecondition):
            await started.service.cancel(operation.id)
        # The unit that systemd or an administrator starts.
        (error,) = work(started.context.store, started.fixture.host, operation.id, "rollback")
        assert "restored from a backup" in error
        assert started.facts.get("zvol:tank/zfsilo/data") is not None
        kept = started.service.operation(operation.id)
        assert kept.state == "NEEDS_REPAIR"
        assert kept.failure is not None
        assert kept.failure.reason == "POOL_NEWER"
        # The merge waits for no claim of an operation that ended in the later store.
        result = await asyncio.wait_for(started.adopt(), 10)
        assert (result.complaints, started.holds) == ({}, [])
        assert any("revocations" in sentence for sentence in result.unknown)
        await started.supervisor.recover()
        assert started.facts.get("zvol:tank/zfsilo/data") is not None
        with started.context.read() as txn:
            assert txn.get(Volume, "data") is not None
            assert list(txn.live()) == []


async def test_a_pool_that_was_used_elsewhere_after_a_crash_comes_back(
    tmp_path: Path, state: Path, pool: Path
) -> None:
    """A1: a host dies in mid-create, and its pool is used on another one before it returns."""
    async with daemon(state, pool) as started:
        launcher = started.fixture.launcher
        launcher.gate.clear()
        operation = await started.service.submit(CREATE, caller=DAEMON)
        begun = operation.with_status(0, "STARTED")
        await started.context.write(lambda txn: txn.put(begun))
        begun.actions[0].step.do(started.fixture.host)  # type: ignore[attr-defined]
    async with daemon(tmp_path / "other", pool) as started:
        await started.adopt(take_over=True)
        await started.fixture.do(Publish(volume="data", host="take"))
    async with daemon(state, pool) as started:
        assert started.holds == ["POOL_OF_ANOTHER_STORE"]
        await started.supervisor.act()
        await started.adopt(take_over=True)
        await started.supervisor.act()
        assert started.holds == []
        assert started.facts.get("zvol:tank/zfsilo/data") is not None
        assert started.service.operation(operation.id).state == "ABANDONED"
        with started.context.read() as txn:
            volume = txn.get(Volume, "data")
        assert volume is not None
        await started.fixture.do(Publish(volume="data", host="take"))


async def test_a_rollback_that_was_held_is_not_a_failure(state: Path, pool: Path) -> None:
    """What was complete when its worker was killed is finished, not reverted, after the hold."""
    async with daemon(state, pool) as started:
        started.fixture.launcher.gate.clear()
        operation = await started.service.submit(CREATE, caller=DAEMON)
        begun = operation.with_status(0, "STARTED")
        await started.context.write(lambda txn: txn.put(begun))
        begun.actions[0].step.do(started.fixture.host)  # type: ignore[attr-defined]
        started.facts.effect("pool:tank", "SUSPENDED")
        store, host = started.context.store, started.fixture.host
        assert work(store, host, operation.id, "rollback") != []
        assert started.service.operation(operation.id).state == "NEEDS_REPAIR"
        started.facts.effect("pool:tank", None)
        assert work(store, host, operation.id, "rollback") == []
        assert started.service.operation(operation.id).state == "DONE"


async def test_a_hold_of_a_peer_is_not_one_of_this_host(state: Path, pool: Path) -> None:
    """The failure of a peer whose pool is held stays, and what was done is reverted."""
    async with daemon(state, pool) as started:
        started.fixture.launcher.gate.clear()
        operation = await started.service.submit(CREATE, caller=DAEMON)
        facts = (("server", "other"),)
        failure = Failure(name="FailedPrecondition", message="", reason="POOL_NEWER", facts=facts)
        failed = operation.with_status(0, "STARTED").but(state="FAILED", failure=failure)
        await started.context.write(lambda txn: txn.put(failed))
        failed.actions[0].step.do(started.fixture.host)  # type: ignore[attr-defined]
        assert work(started.context.store, started.fixture.host, operation.id, "rollback") == []
        ended = started.service.operation(operation.id)
        assert (ended.state, ended.failure) == ("ROLLED_BACK", failure)


@pytest.mark.parametrize("owner", ["earlier", "none"])
async def test_a_pool_that_was_rolled_back_is_held(state: Path, pool: Path, owner: str) -> None:
    """A11: a checkpoint of before the last start, or of before the first claim."""
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE, Publish(volume="data", host="take"))
        checkpoint = started.facts.get(OWNER) if owner == "earlier" else None
    async with daemon(state, pool) as started:
        started.facts.effect(OWNER, checkpoint)
    async with daemon(state, pool) as started:
        assert started.holds == ["POOL_OLDER"]
        assert await started.refusal(DeleteVolume(id="data")) == "POOL_OLDER"
        result = await started.adopt()
        assert (started.holds, started.generation) == ([], 3)
        # The client may have blocks in its cache that the pool has lost: it is not let in again.
        assert "volumes/data" in result.unknown[-1]
        with started.context.read() as txn:
            assert list(txn.scan(Publication)) == []
            volume = txn.get(Volume, "data")
            assert volume is not None
        assert volume.state == "CREATED"
        await started.fixture.do(Publish(volume="data", host="take"))


async def test_a_hold_stays_until_all_publications_are_withdrawn(
    state: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next sync would let the client in again, with blocks that the pool has lost."""
    late = CREATE.but(id="late")  # made after the checkpoint
    async with daemon(state, pool) as started:
        for create in (CREATE, late):
            await started.fixture.do(create, Publish(volume=create.id, host="take"))
    async with daemon(state, pool) as started:
        started.facts.effect(OWNER, None)
        started.facts.effect("zvol:tank/zfsilo/late", None)
        started.fixture.host.facts.reboot()
    async with daemon(state, pool) as started:
        zfs = started.fixture.host.zfs

        def refused(*_arguments: object) -> None:
            raise Unavailable("zfs set did not answer", reason="TOOL_TIMEOUT")

        with monkeypatch.context() as patch:
            patch.setattr(zfs, "set_property", refused)
            result = await started.adopt()
        assert started.holds == ["POOL_OLDER"]
        assert "volumes/data" in result.complaints
        assert "data" in result.complaints["pools/tank"]
        result = await started.adopt()
        assert (result.complaints, started.holds) == ({}, [])
        with started.context.read() as txn:
            assert list(txn.scan(Publication)) == []


async def test_a_pool_of_another_store_is_taken_over_by_name_only(
    tmp_path: Path, state: Path, pool: Path
) -> None:
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE)
        owner = parse_owner(str(started.facts.get(OWNER)))
        assert owner is not None
        started.facts.effect(OWNER, str(owner.but(host="elsewhere")))
    async with daemon(tmp_path / "other", pool) as started:
        assert started.holds == ["POOL_OF_ANOTHER_STORE"]
        assert await started.refusal(CREATE) == "POOL_OF_ANOTHER_STORE"
        with pytest.raises(FailedPrecondition, match=r"elsewhere.*--take-over"):
            await started.adopt()
        await started.adopt(take_over=True)
        assert started.holds == []
        with started.context.read() as txn:
            assert txn.get(Volume, "data") is not None
    async with daemon(state, pool) as started:  # the former owner comes back
        assert started.holds == ["POOL_OF_ANOTHER_STORE"]
        assert started.context.ownership.holds[0].command == "zfsiloctl adopt --all"  # same host id


async def test_a_lost_store_is_rebuilt_on_its_host(tmp_path: Path, state: Path, pool: Path) -> None:
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE)
    async with daemon(tmp_path / "new", pool) as started:
        assert started.holds == ["POOL_OF_ANOTHER_STORE"]
        await started.adopt()  # without --take-over: the host is the same
        assert started.holds == []


async def test_a_pool_that_comes_back_is_compared_again(state: Path, pool: Path) -> None:
    """The pool was exported, used on another host, and imported again while the daemon ran."""
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE)
        started.facts.effect(OWNER, f"{'a' * 32}:1:elsewhere")
        started.supervisor.compare_due = 0.0  # a minute later
        await started.supervisor.follow_pool()
        assert started.holds == ["POOL_OF_ANOTHER_STORE"]
        assert started.facts.get(OWNER) == f"{'a' * 32}:1:elsewhere"


async def test_a_sync_compares_first(state: Path, pool: Path) -> None:
    """The pool came back between two comparisons: no export is restored from old records."""
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE, Publish(volume="data", host="take"))
        started.facts.effect(OWNER, f"{'a' * 32}:1:elsewhere")
        started.facts.reboot()
        before = started.facts.snapshot()
        await started.service.reconciler.sync_all(DAEMON)
        assert started.holds == ["POOL_OF_ANOTHER_STORE"]
        assert started.facts.snapshot() == before


async def test_callers_share_one_look_at_an_unknown_pool(
    state: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemon(state, pool) as started:
        started.facts.effect("pool:tank", "SUSPENDED")
        await compare(started.context)
        looks = 0
        zfs = started.fixture.host.zfs
        find_owner = zfs.find_owner

        def look(root: str) -> str:
            nonlocal looks
            looks += 1
            time.sleep(0.05)
            return find_owner(root)

        monkeypatch.setattr(zfs, "find_owner", look)
        refusals = [started.refusal(CREATE.but(id=f"n{number}")) for number in range(20)]
        assert set(await asyncio.gather(*refusals)) == {"POOL_UNKNOWN"}
        assert looks <= 2


async def test_a_missing_dataset_root_is_named(state: Path, pool: Path) -> None:
    async with daemon(state, pool) as started:
        started.facts.effect("pool:tank", "EMPTY")
        await compare(started.context)
        (hold,) = started.context.ownership.holds
        assert (hold.reason, hold.command) == ("POOL_UNKNOWN", f"zfs create -p {ROOT}")


async def test_a_pool_that_cannot_be_read_is_not_served_until_it_can(
    state: Path, pool: Path
) -> None:
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE)
        started.facts.effect("pool:tank", "EXPORTED")
    async with daemon(state, pool) as started:
        assert started.holds == ["POOL_UNKNOWN"]
        with pytest.raises(Unavailable, match="not imported"):
            await started.fixture.do(Publish(volume="data", host="take"))
        with pytest.raises(Unavailable):
            await started.adopt()
        started.facts.effect("pool:tank", None)
        await started.fixture.do(Publish(volume="data", host="take"))  # it is compared again
        assert started.context.lifted.is_set()
        await started.supervisor.follow_pool()
        assert started.generation == 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", ["run", "rollback"])
async def test_a_crash_between_pool_and_store_is_no_hold(
    state: Path, pool: Path, when: str, way: str
) -> None:
    async with daemon(state, pool):
        pass
    async with daemon(state, pool, claims=False) as started:
        fixture = started.fixture
        started.facts.light_fuse(1, when=when, how="kill")
        fixture.launcher.gate.clear()
        claim = asyncio.create_task(started.supervisor.follow_pool())
        while not fixture.launcher.tasks:
            await asyncio.sleep(0)
        with started.context.read() as txn:
            (operation,) = txn.live()
        claim.cancel()

        class PowerCut(BaseException):
            pass

        def kill() -> None:
            raise PowerCut

        fixture.host.facts.kill = kill  # type: ignore[method-assign]
        with pytest.raises(PowerCut):
            work(started.context.store, fixture.host, operation.id, "run")
        await compare(started.context)
        assert started.holds == []
        if way == "rollback":
            assert work(started.context.store, fixture.host, operation.id, "rollback") == []
        await compare(started.context)
        assert started.holds == []


async def test_a_cloned_machine_changes_nothing(state: Path, pool: Path) -> None:
    """A4: the clone of a client, or of a server with its disks."""
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE, Publish(volume="data", host="take"))
        await started.fixture.do(Connect(id="data", server="give", volume="data"))
        started.facts.effect("machine", "c" * 32)
    async with daemon(state, pool) as started:
        assert started.holds == ["OTHER_MACHINE"]
        before = started.facts.snapshot()
        for request in (*SERVER_REQUESTS, Connect(id="data", server="give", volume="data")):
            assert await started.refusal(request) == "OTHER_MACHINE", request
        await started.supervisor.act()
        with pytest.raises(FailedPrecondition, match="machine moved"):
            await started.service.reconciler.sync_all(DAEMON)
        with pytest.raises(FailedPrecondition, match="machine cloned"):
            await started.service.introduce("give")
        assert started.facts.snapshot() == before


async def test_the_daemon_compares_before_it_answers(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compared(Exception):
        pass

    async def stop(_context: object) -> None:
        assert not list(state.rglob("*.sock"))
        raise Compared

    monkeypatch.setattr("zfsilod.daemon.compare", stop)
    options = Namespace(simulate=state, simulate_host=False, config=None, state=None, tcp="")
    with pytest.raises(Compared):
        await serve(Paths(options), Config())


async def test_a_moved_machine_goes_on(state: Path, pool: Path) -> None:
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE, Publish(volume="data", host="take"))
        started.facts.effect("machine", "c" * 32)
    async with daemon(state, pool) as started:
        await bind_machine(started.context, cloned=False)
        assert started.holds == []
        assert started.context.lifted.is_set()  # volumes are restored now
        await started.supervisor.follow_pool()
        assert started.generation == 2
        with started.context.read() as txn:
            assert txn.get(Publication, "data/take") is not None


async def test_a_clone_forgets_the_original(state: Path, pool: Path) -> None:
    async with daemon(state, pool) as started:
        await started.fixture.do(CREATE, Publish(volume="data", host="take"))
        await started.fixture.do(Connect(id="data", server="give", volume="data"))
        started.fixture.launcher.gate.clear()
        await started.service.submit(CreateVolume(id="half", capacity_bytes=GIB), caller=DAEMON)
        started.facts.effect("machine", "c" * 32)
    async with daemon(state, pool) as started:
        await bind_machine(started.context, cloned=True)
        # The cloned pool is that of the original: its volumes are not served twice.
        assert started.holds == ["POOL_OF_ANOTHER_STORE"]
        with started.context.read() as txn:
            assert [*txn.scan(Publication), *txn.scan(Attachment), *txn.live()] == []
            (volume,) = txn.scan(Volume)
            states = {operation.state for operation in txn.scan(Operation)}
        assert volume.state == "CREATED"
        assert "ABANDONED" in states
        before = started.facts.get("zvol:tank/zfsilo/data")
        await started.adopt()
        assert started.holds == []
        assert started.facts.get("zvol:tank/zfsilo/data") == before


async def test_a_rollback_on_another_machine_is_refused(state: Path, pool: Path) -> None:
    async with daemon(state, pool) as started:
        started.fixture.launcher.gate.clear()
        operation = await started.service.submit(CREATE, caller=DAEMON)
        started.facts.effect("machine", "c" * 32)
        (error,) = work(started.context.store, started.fixture.host, operation.id, "rollback")
        assert "another machine" in error

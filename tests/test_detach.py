"""How a consumer lets go: with a dead server, from a stuck climb, and of what earlier ones left."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.examples import PLANS, operation
from zfsilod.engine import worker
from zfsilod.model.errors import Busy, CommandFailed, FailedPrecondition, ZfsiloError
from zfsilod.model.records import Attachment, Operation
from zfsilod.requests.attach import Connect, MountAt, Stage
from zfsilod.requests.detach import Clear, Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from tests.doubles import House

CREATE = CreateVolume(id="data", capacity_bytes=1 << 30, hosts=("take",))
PUBLISH = Publish(volume="data", host="take")
CONNECT = Connect(id="data", server="give", volume="data")
UP = (CREATE, PUBLISH, CONNECT, Stage(id="data"), MountAt(id="data", path="/srv/data"))
FENCE = Unpublish(volume="data", host="take", fence=True, grace_s=0)


def attachment(zfsilo: House) -> Attachment | None:
    with zfsilo.service.context.store.read() as txn:
        return txn.get(Attachment, "data")


def kinds(zfsilo: House) -> set[str]:
    return {name.partition(":")[0] for name in zfsilo.facts}


def ways(operation: Operation) -> list[str]:
    return [f"{action.way} {type(action.step).__name__}" for action in operation.actions]


async def test_a_lost_session_turns_the_order_round(zfsilo: House) -> None:
    await zfsilo.do(*UP, FENCE)
    unmounted = await zfsilo.do(UnmountFrom(id="data"))
    assert ways(unmounted) == ["do LazyUnmounted", "undo MountPoint"]
    unstaged = await zfsilo.do(Unstage(id="data"))
    assert ways(unstaged) == ["do SessionDropped", "do LazyUnmounted", "undo MountPoint"]
    await zfsilo.do(Disconnect(id="data"))
    assert kinds(zfsilo) == {"zvol", "content"}


@pytest.mark.parametrize("kind", ["unmount", "unstage", "disconnect"])
async def test_a_disk_that_hangs_loses_its_session_first(zfsilo: House, kind: str) -> None:
    await zfsilo.do(*UP)
    for request in (UnmountFrom(id="data"), Unstage(id="data"), Disconnect(id="data")):
        if request.kind == kind:
            freeze(zfsilo)
        done = await zfsilo.do(request)
        hung = "DONE" if request.kind == kind else "UNCHANGED"
        assert (ways(done)[0], done.actions[0].status) == ("do DiskResponsive", hung)
        if request.kind == kind:
            break
    assert "session" not in kinds(zfsilo)
    await zfsilo.do(Disconnect(id="data", force=True))
    assert not kinds(zfsilo) & {"session", "node", "mount", "point"}


def freeze(zfsilo: House) -> None:
    """Let the server stop to answer, behind a session that stands."""
    memory = zfsilo.host.facts.memory
    (name,) = (fact for fact in memory if fact.startswith("session:"))
    memory[name] |= {"hangs": True}


async def test_force_goes_down_from_any_state(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    for refused in (Unstage(id="data"), Disconnect(id="data")):
        with pytest.raises(FailedPrecondition):
            await zfsilo.do(refused)
    await zfsilo.do(Unstage(id="data", force=True))
    record = attachment(zfsilo)
    assert record is not None
    assert (record.state, record.mounts) == ("CONNECTED", ())
    await zfsilo.do(CONNECT, *UP[3:], Disconnect(id="data", force=True))
    assert attachment(zfsilo) is None
    assert not kinds(zfsilo) & {"session", "node", "mount", "point"}


async def test_what_was_taken_away_is_not_published_again_by_itself(zfsilo: House) -> None:
    await zfsilo.do(CREATE, CONNECT.but(publish_if_needed=True), FENCE)
    with pytest.raises(
        FailedPrecondition, match="publication 1 of data to this host was withdrawn"
    ) as refused:
        await zfsilo.do(CONNECT.but(publish_if_needed=True))
    assert refused.value.reason == "FENCED"
    await zfsilo.do(Disconnect(id="data", force=True), CONNECT.but(publish_if_needed=True))


async def test_a_new_publication_ends_what_the_old_one_left(zfsilo: House) -> None:
    await zfsilo.do(*UP, FENCE, PUBLISH)
    await zfsilo.do(CONNECT)
    record = attachment(zfsilo)
    assert record is not None
    assert (record.state, record.epoch, record.mounts) == ("CONNECTED", 2, ())
    assert "mount" not in kinds(zfsilo)
    await zfsilo.do(*UP[3:])


async def test_a_stale_epoch_ends_nothing(zfsilo: House) -> None:
    await zfsilo.do(*UP, FENCE, PUBLISH)
    before = zfsilo.facts
    with pytest.raises(FailedPrecondition, match="has passed"):
        await zfsilo.do(CONNECT.but(epoch=1))
    with pytest.raises(FailedPrecondition, match="data has no epoch 99 yet; the current one is 2"):
        await zfsilo.do(CONNECT.but(epoch=99))
    assert zfsilo.facts == before


async def test_a_session_that_no_record_knows_is_ended_first(zfsilo: House) -> None:
    await zfsilo.do(*UP[:3])
    await forget(zfsilo)
    await zfsilo.do(CONNECT)
    with zfsilo.service.context.store.read() as txn:
        assert "clear" in [operation.kind for operation in txn.scan(Operation)]


async def test_one_that_is_in_use_is_told(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    await forget(zfsilo)
    before = zfsilo.facts
    with pytest.raises(Busy, match="in use on this host by /srv/data"):
        await zfsilo.do(CONNECT)
    assert zfsilo.facts == before


async def forget(zfsilo: House) -> None:
    await zfsilo.service.context.write(lambda txn: txn.drop("attachment", "data"))


async def test_a_descent_stops_a_climb(zfsilo: House) -> None:
    await zfsilo.do(*UP[:2])
    zfsilo.launcher.gate.clear()
    climb = await zfsilo.service.submit(CONNECT, caller="a")
    down = await zfsilo.service.submit(Disconnect(id="data"), caller="b")
    await zfsilo.service.wait(down.id, 10)
    assert zfsilo.service.operation(climb.id).state == "ROLLED_BACK"
    assert attachment(zfsilo) is None


async def test_a_descent_stops_a_climb_that_waits_for_its_server(zfsilo: House) -> None:
    await zfsilo.do(*UP[:3])
    reached, answer = asyncio.Event(), asyncio.Event()
    report = zfsilo.server.report

    async def slow(*arguments: object) -> None:
        reached.set()
        await answer.wait()
        await report(*arguments)  # type: ignore[arg-type]

    zfsilo.server.report = slow  # type: ignore[method-assign,assignment]
    climb = await zfsilo.service.submit(Stage(id="data"), caller="a")
    await asyncio.wait_for(reached.wait(), 10)
    down = await zfsilo.service.submit(Unstage(id="data"), caller="b")
    answer.set()
    await zfsilo.service.wait(down.id, 10)
    ended = await zfsilo.service.ended(climb.id, 10)
    assert ended.state == "ROLLED_BACK"
    assert ended.failure is not None
    assert ended.failure.reason == "CANCELLED"


def break_logout(zfsilo: House) -> None:
    def broken(_disk: object) -> None:
        raise CommandFailed("iscsid does not answer")

    zfsilo.host.iscsi.logout = broken  # type: ignore[method-assign,assignment]


def mend_logout(zfsilo: House) -> None:
    del zfsilo.host.iscsi.logout


async def test_what_needs_repair_refuses_all_but_a_descent(zfsilo: House) -> None:
    begun = await needs_repair(zfsilo)
    for request in (CONNECT, Stage(id="data")):
        with pytest.raises(ZfsiloError):
            await zfsilo.do(request)
    with pytest.raises(Busy, match=f"needs repair: zfsiloctl operation repair {begun.id}"):
        await zfsilo.do(Disconnect(id="data"))
    assert zfsilo.service.operation(begun.id).attempts == 2, "the descent tried it once more"
    mend_logout(zfsilo)
    await zfsilo.do(Disconnect(id="data"))
    assert zfsilo.service.operation(begun.id).state == "ROLLED_BACK"
    assert "session" not in kinds(zfsilo)


async def needs_repair(zfsilo: House) -> Operation:
    """Return a connect whose login was made and then failed, and that cannot log out again."""
    await zfsilo.do(*UP[:2])
    break_logout(zfsilo)
    login = zfsilo.host.iscsi.login

    def half(disk: object) -> None:
        login(disk)  # type: ignore[arg-type]
        raise CommandFailed("the disk did not appear")

    zfsilo.host.iscsi.login = half  # type: ignore[method-assign]
    begun = await zfsilo.service.submit(CONNECT, caller="a")
    operation = await zfsilo.service.ended(begun.id, 10)
    assert operation.state == "NEEDS_REPAIR"
    del zfsilo.host.iscsi.login
    return operation


async def test_abandon_frees_what_it_claims_and_tells_what_stays(zfsilo: House) -> None:
    begun = await needs_repair(zfsilo)
    operation = await zfsilo.service.abandon(begun.id)
    assert [made.split(" ")[0] for made in operation.behind] == ["create", "log"]
    assert operation.state == "ABANDONED"
    assert operation.failure is not None
    with zfsilo.service.context.store.read() as txn:
        assert list(txn.live()) == []
        assert txn.claimant("attachment/data") is None
    await Supervisor(zfsilo.service, retention_s=3600).recover()
    assert zfsilo.service.operation(begun.id).state == "ABANDONED"
    with pytest.raises(FailedPrecondition, match="does not need repair"):
        await zfsilo.service.abandon(begun.id)


async def test_force_abandons_what_cannot_be_repaired(zfsilo: House) -> None:
    begun = await needs_repair(zfsilo)
    await zfsilo.do(Disconnect(id="data", force=True))
    assert zfsilo.service.operation(begun.id).state == "ABANDONED"
    await zfsilo.do(CONNECT)  # it ends the session that stayed behind


async def test_what_is_taken_for_a_leftover_stays_once_it_has_a_record(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    before, record = zfsilo.facts, attachment(zfsilo)
    assert record is not None
    await zfsilo.do(
        Clear(id="data", disk=record.disk, paths=record.paths),  # seen while it was connected
        Disconnect(id="data", force=True, epoch=record.epoch + 1),  # of another time
    )
    assert zfsilo.facts == before
    assert attachment(zfsilo) == record


async def test_after_a_reboot_nothing_is_left_of_what_nobody_restores(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    zfsilo.host.facts.reboot()
    await zfsilo.service.reconciler.clear_leftovers("zfsilod")
    assert attachment(zfsilo) is not None, "it was connected in this boot"
    zfsilo.service.context.boot_id = "next"
    await zfsilo.service.reconciler.clear_leftovers("zfsilod")
    assert attachment(zfsilo) is None
    assert not kinds(zfsilo) & {"node", "point"}


def look(directory: Path, operation_id: str) -> Operation:
    """Return an operation as a store has it that nobody else has open."""
    store = Store(directory)
    with store.read() as txn:
        record = txn.get(Operation, operation_id)
    store.close()
    assert record is not None
    return record


def hold_lock(path: Path) -> int:
    """Return a descriptor that holds the lock of an operation."""
    path.parent.mkdir()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_rollback_waits_for_the_last_tool_and_tells_when_it_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
    example = next(example for example in PLANS if example.name == "publish")
    with store.write() as txn:
        begun = txn.add_operation(operation(example).but(state="FAILED"))
    store.close()
    monkeypatch.setattr(worker, "LOCK_DEADLINE_S", 1)
    monkeypatch.setattr(sys, "argv", ["worker", "--state", str(tmp_path), "rollback", begun.id])
    held = hold_lock(tmp_path / "op" / f"{begun.id}.lock")  # as a tool that outlives its worker
    assert worker.main() == 1
    stuck = look(tmp_path, begun.id)
    assert (stuck.state, stuck.attempts) == ("NEEDS_REPAIR", 1)
    assert stuck.failure is not None
    assert stuck.failure.reason == "STUCK"
    os.close(held)
    assert worker.main() == 0
    assert look(tmp_path, begun.id).state == "ROLLED_BACK"

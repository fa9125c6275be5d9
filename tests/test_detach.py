"""Detach: from a dead or hanging server, from a stuck attach, and of sessions without records."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.examples import PLANS, operation
from tests.service_fixture import administrator
from zfsilod.engine import locks, worker
from zfsilod.model.errors import Busy, CommandFailed, FailedPrecondition, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Attachment, Operation, PendingRelease
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.detach import Clear, Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service_fixture import ServiceFixture

CREATE = CreateVolume(id="data", capacity_bytes=1 << 30, hosts=("take",))
PUBLISH = Publish(volume="data", host="take")
CONNECT = Connect(id="data", server="give", volume="data")
UP = (CREATE, PUBLISH, CONNECT, Stage(id="data"), MountAt(id="data", path="/srv/data"))
FENCE = Unpublish(volume="data", host="take", fence=True, grace_s=0)


def attachment(fixture: ServiceFixture) -> Attachment | None:
    with fixture.service.context.store.read() as txn:
        return txn.get(Attachment, "data")


def kinds(fixture: ServiceFixture) -> set[str]:
    return {name.partition(":")[0] for name in fixture.facts}


def ways(operation: Operation) -> list[str]:
    return [f"{action.way} {type(action.step).__name__}" for action in operation.actions]


async def test_a_lost_session_is_dropped_before_its_mounts(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, FENCE)
    unmounted = await fixture.do(UnmountFrom(id="data"))
    assert ways(unmounted) == ["do UsersNamed", "do LazyUnmounted", "undo MountPoint"]
    unstaged = await fixture.do(Unstage(id="data"))
    assert ways(unstaged) == [
        "do UsersNamed",
        "do SessionDropped",
        "do LazyUnmounted",
        "undo MountPoint",
    ]
    await fixture.do(Disconnect(id="data"))
    assert kinds(fixture) == {"zvol", "content"}


@pytest.mark.parametrize("kind", ["unmount", "unstage", "disconnect"])
async def test_a_hanging_disk_loses_its_session_first(fixture: ServiceFixture, kind: str) -> None:
    await fixture.do(*UP)
    for request in (UnmountFrom(id="data"), Unstage(id="data"), Disconnect(id="data")):
        if request.kind == kind:
            freeze(fixture)
        done = await fixture.do(request)
        hung = "DONE" if request.kind == kind else "UNCHANGED"
        assert (ways(done)[0], done.actions[0].status) == ("do DiskResponsive", hung)
        if request.kind == kind:
            break
    assert "session" not in kinds(fixture)
    await fixture.do(Disconnect(id="data", force=True))
    assert not kinds(fixture) & {"session", "node", "mount", "point"}


def freeze(fixture: ServiceFixture) -> None:
    """Make the server hang behind a session that stays logged in."""
    memory = fixture.host.facts.memory
    (name,) = (fact for fact in memory if fact.startswith("session:"))
    memory[name] |= {"hangs": True}


async def test_force_detaches_from_any_state(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    for refused in (Unstage(id="data"), Disconnect(id="data")):
        with pytest.raises(FailedPrecondition):
            await fixture.do(refused)
    await fixture.do(Unstage(id="data", force=True))
    record = attachment(fixture)
    assert record is not None
    assert (record.state, record.mounts) == ("CONNECTED", ())
    await fixture.do(CONNECT, *UP[3:], Disconnect(id="data", force=True))
    assert attachment(fixture) is None
    assert not kinds(fixture) & {"session", "node", "mount", "point"}


async def test_a_fenced_client_does_not_publish_to_itself(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, CONNECT.but(publish_if_needed=True), FENCE)
    with pytest.raises(
        FailedPrecondition, match="publication 1 of data to this host was withdrawn"
    ) as refused:
        await fixture.do(CONNECT.but(publish_if_needed=True))
    assert refused.value.reason == "FENCED"
    await fixture.do(Disconnect(id="data", force=True), CONNECT.but(publish_if_needed=True))


async def test_a_new_publication_ends_the_session_of_the_old_one(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, FENCE, PUBLISH)
    await fixture.do(CONNECT)
    record = attachment(fixture)
    assert record is not None
    assert (record.state, record.epoch, record.mounts) == ("CONNECTED", 3, ())
    assert "mount" not in kinds(fixture)
    await fixture.do(*UP[3:])


async def test_a_connect_with_restore_boot_changes_the_attachment(fixture: ServiceFixture) -> None:
    await fixture.do(*UP[:2], CONNECT, CONNECT.but(restore="BOOT"), CONNECT)
    connected = attachment(fixture)
    assert connected is not None
    assert connected.restore == "BOOT"


async def test_a_stale_epoch_ends_nothing(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, FENCE, PUBLISH)
    before = fixture.facts
    with pytest.raises(FailedPrecondition, match="has expired"):
        await fixture.do(CONNECT.but(epoch=1))
    with pytest.raises(FailedPrecondition, match="data has no epoch 99 yet; the current one is 3"):
        await fixture.do(CONNECT.but(epoch=99))
    assert fixture.facts == before


async def test_a_session_without_a_record_is_ended_first(fixture: ServiceFixture) -> None:
    await fixture.do(*UP[:3])
    await drop_attachment(fixture)
    await fixture.do(CONNECT)
    with fixture.service.context.store.read() as txn:
        assert "clear" in [operation.kind for operation in txn.scan(Operation)]


async def test_a_connect_that_published_and_had_to_clear_first_releases(
    fixture: ServiceFixture,
) -> None:
    """The release belongs to the operation, though its inputs were gathered twice."""
    await fixture.do(*UP[:3])
    await drop_attachment(fixture)
    session = next(name for name in fixture.host.facts.snapshot() if name.startswith("session:"))
    left = fixture.host.facts.get(session)
    await fixture.do(FENCE)
    fixture.host.facts.effect(session, left)  # as after a power cut of the server
    await fixture.do(CONNECT.but(publish_if_needed=True))
    connected = attachment(fixture)
    assert connected is not None
    assert connected.published_here
    with fixture.service.context.read() as txn:
        assert list(txn.scan(PendingRelease)) == []


async def test_a_session_without_a_record_in_use_refuses_a_connect(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    await drop_attachment(fixture)
    before = fixture.facts
    with pytest.raises(Busy, match="in use on this host by /srv/data"):
        await fixture.do(CONNECT)
    assert fixture.facts == before


@pytest.mark.parametrize("kind", ["session", "node", "both", "other server"])
async def test_a_server_cannot_name_the_target_of_another(
    fixture: ServiceFixture, kind: str
) -> None:
    """An idle session and a node record that are not zfsilo's for this server stay as they are."""
    await fixture.do(CREATE, PUBLISH)
    connection, _chap = await fixture.service.context.servers.fetch("give", "data")
    target = connection.target
    node = {"portals": ["10.9.9.9:3260"], "initiator": "iqn.2024-01.lab.take:host"}
    node |= {"server": "archive", "chap": "x"} if kind == "other server" else {}
    if kind != "node":
        left = {"serial": connection.serial, "size": 1, "initiator": "", "chap": ""}
        fixture.host.facts.effect(f"session:{target}", left)
    if kind != "session":
        fixture.host.facts.effect(f"node:{target}", node)
    before = fixture.facts
    with pytest.raises(FailedPrecondition) as refused:
        await fixture.do(CONNECT)
    assert refused.value.reason == "FOREIGN_TARGET"
    assert fixture.facts == before
    assert attachment(fixture) is None


async def drop_attachment(fixture: ServiceFixture) -> None:
    await fixture.service.context.write(lambda txn: txn.drop("attachment", "data"))


async def test_a_disconnect_stops_a_connect(fixture: ServiceFixture) -> None:
    await fixture.do(*UP[:2])
    fixture.launcher.gate.clear()
    attach = await fixture.service.submit(CONNECT, caller=administrator("a"))
    down = await fixture.service.submit(Disconnect(id="data"), caller=administrator("b"))
    await fixture.service.wait(down.id, 10)
    assert fixture.service.operation(attach.id).state == "ROLLED_BACK"
    assert attachment(fixture) is None


async def test_an_unstage_stops_a_stage_that_waits_for_its_server(fixture: ServiceFixture) -> None:
    await fixture.do(*UP[:3])
    reached, answer = asyncio.Event(), asyncio.Event()
    report = fixture.server.report

    async def slow(*arguments: object) -> None:
        reached.set()
        await answer.wait()
        await report(*arguments)  # type: ignore[arg-type]

    fixture.server.report = slow  # type: ignore[method-assign,assignment]
    attach = await fixture.service.submit(Stage(id="data"), caller=administrator("a"))
    await asyncio.wait_for(reached.wait(), 10)
    down = await fixture.service.submit(Unstage(id="data"), caller=administrator("b"))
    answer.set()
    await fixture.service.wait(down.id, 10)
    ended = await fixture.service.ended(attach.id, 10)
    assert ended.state == "ROLLED_BACK"
    assert ended.failure is not None
    assert ended.failure.reason == "CANCELLED"


def break_logout(fixture: ServiceFixture) -> None:
    def broken(_disk: object) -> None:
        raise CommandFailed("iscsid does not answer")

    fixture.host.iscsi.logout = broken  # type: ignore[method-assign,assignment]


def mend_logout(fixture: ServiceFixture) -> None:
    del fixture.host.iscsi.logout


async def test_an_operation_that_needs_repair_allows_only_to_detach(
    fixture: ServiceFixture,
) -> None:
    submitted = await needs_repair(fixture)
    for request in (CONNECT, Stage(id="data")):
        with pytest.raises(ZfsiloError):
            await fixture.do(request)
    with pytest.raises(Busy, match=f"needs repair: zfsiloctl operation repair {submitted.id}"):
        await fixture.do(Disconnect(id="data"))
    assert fixture.service.operation(submitted.id).attempts == 2, "disconnect retried it"
    mend_logout(fixture)
    await fixture.do(Disconnect(id="data"))
    assert fixture.service.operation(submitted.id).state == "ROLLED_BACK"
    assert "session" not in kinds(fixture)


async def needs_repair(fixture: ServiceFixture) -> Operation:
    """Return a connect that failed after its login, and whose logout fails in the rollback."""
    await fixture.do(*UP[:2])
    break_logout(fixture)
    login = fixture.host.iscsi.login

    def half(disk: object) -> None:
        login(disk)  # type: ignore[arg-type]
        raise CommandFailed("the disk did not appear")

    fixture.host.iscsi.login = half  # type: ignore[method-assign]
    submitted = await fixture.service.submit(CONNECT, caller=administrator("a"))
    operation = await fixture.service.ended(submitted.id, 10)
    assert operation.state == "NEEDS_REPAIR"
    del fixture.host.iscsi.login
    return operation


async def test_abandon_releases_claims_and_lists_what_stays(fixture: ServiceFixture) -> None:
    submitted = await needs_repair(fixture)
    operation = await fixture.service.abandon(submitted.id)
    assert [description.split(" ")[0] for description in operation.behind] == ["create", "log"]
    assert operation.state == "ABANDONED"
    assert operation.failure is not None
    with fixture.service.context.store.read() as txn:
        assert list(txn.live()) == []
        assert txn.claimant("attachment/data") is None
    await Supervisor(fixture.service, retention_s=3600).recover()
    assert fixture.service.operation(submitted.id).state == "ABANDONED"
    with pytest.raises(FailedPrecondition, match="does not need repair"):
        await fixture.service.abandon(submitted.id)


async def test_force_abandons_an_operation_that_cannot_be_repaired(fixture: ServiceFixture) -> None:
    submitted = await needs_repair(fixture)
    await fixture.do(Disconnect(id="data", force=True))
    assert fixture.service.operation(submitted.id).state == "ABANDONED"
    await fixture.do(CONNECT)  # it ends the session that was left


async def test_a_session_with_a_record_is_not_cleared(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    before, record = fixture.facts, attachment(fixture)
    assert record is not None
    await fixture.do(
        Clear(id="data", disk=record.disk, paths=record.paths),  # gathered while it was connected
        Disconnect(id="data", force=True, epoch=record.epoch + 1),  # of another publication
    )
    assert fixture.facts == before
    assert attachment(fixture) == record


async def test_attachments_that_are_not_restored_are_cleared_after_a_reboot(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*UP)
    fixture.host.facts.reboot()
    await fixture.service.reconciler.clear_leftovers(DAEMON)
    assert attachment(fixture) is not None, "it was connected in this boot"
    fixture.service.context.boot_id = "next"
    await fixture.service.reconciler.clear_leftovers(DAEMON)
    assert attachment(fixture) is None
    assert not kinds(fixture) & {"node", "point"}


def read_operation(directory: Path, operation_id: str) -> Operation:
    """Return an operation from a store that no other code has open."""
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


def test_a_rollback_waits_for_the_last_tool_up_to_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
    example = next(example for example in PLANS if example.name == "publish")
    with store.write() as txn:
        submitted = txn.add_operation(operation(example).but(state="FAILED"))
    store.close()
    monkeypatch.setattr(locks, "LOCK_DEADLINE_S", 1)
    monkeypatch.setattr(sys, "argv", ["worker", "--state", str(tmp_path), "rollback", submitted.id])
    held = hold_lock(tmp_path / "op" / f"{submitted.id}.lock")  # as a tool that outlives its worker
    assert worker.main() == 1
    stuck = read_operation(tmp_path, submitted.id)
    assert (stuck.state, stuck.attempts) == ("NEEDS_REPAIR", 1)
    assert stuck.failure is not None
    assert stuck.failure.reason == "STUCK"
    os.close(held)
    assert worker.main() == 0
    assert read_operation(tmp_path, submitted.id).state == "ROLLED_BACK"

"""Requests through the service: every state up and down, joins, waits, reboots and watches."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import DEADLINE_S, SETTINGS, ServiceFixture, administrator
from tests.worker_rig import not_sticky
from zfsilod.host.fake import VOLATILE
from zfsilod.model.errors import (
    Busy,
    CommandFailed,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from zfsilod.model.records import Attachment, Operation, PendingRelease, Publication, Volume
from zfsilod.requests.attach import Grow, MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.transaction import Transaction
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GIB = 1 << 30
CREATE = CreateVolume(id="data", capacity_bytes=GIB, hosts=("take",))
PUBLISH = Publish(volume="data", host="take")
CONNECT = Connect(id="data", server="give", volume="data")
UP = (CREATE, PUBLISH, CONNECT, Stage(id="data"), MountAt(id="data", path="/srv/data"))
DOWN = (
    UnmountFrom(id="data"),
    Unstage(id="data"),
    Disconnect(id="data"),
    Unpublish(volume="data"),
    DeleteVolume(id="data"),
)


def volume(fixture: ServiceFixture) -> Volume:
    with fixture.service.context.store.read() as txn:
        record = txn.get(Volume, "data")
    assert record is not None
    return record


def attachment(fixture: ServiceFixture) -> Attachment:
    with fixture.service.context.store.read() as txn:
        record = txn.get(Attachment, "data")
    assert record is not None
    return record


def raw_keys(fixture: ServiceFixture, bucket: str) -> list[bytes]:
    with fixture.service.context.store.read() as txn:
        return [key for key, _value in txn.items(f"{bucket}/".encode())]


async def test_the_way_up_and_down_leaves_nothing_behind(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    assert attachment(fixture).state == "MOUNTED"
    assert volume(fixture).filesystem.state == "READY"
    assert volume(fixture).filesystem.uuid == attachment(fixture).filesystem.uuid
    assert volume(fixture).guid
    await fixture.do(*DOWN)
    left = {n for n in fixture.facts if not n.startswith("content:")}
    assert left == {"point:/var/lib/zfsilo/staging/data"} - {"point:/var/lib/zfsilo/staging/data"}
    assert (
        raw_keys(fixture, "claim") == raw_keys(fixture, "secret") == raw_keys(fixture, "live") == []
    )


async def test_a_repeated_request_has_no_actions(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    before = fixture.facts
    for request in UP:
        operation = await fixture.do(request)
        assert operation.actions == (), f"{request.kind} has actions"
    assert fixture.facts == before


async def test_a_second_detach_and_unpublish_succeed(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, *DOWN[:-1], *DOWN[:-1])
    assert volume(fixture).state == "CREATED"


async def test_a_filesystem_survives_a_new_publication(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    uuid = attachment(fixture).filesystem.uuid
    await fixture.do(*DOWN[:-1], *UP[1:])
    assert attachment(fixture).filesystem.uuid == uuid
    assert volume(fixture).epoch == 3


async def test_growth_reaches_the_filesystem(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    await fixture.do(
        UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB), Grow(id="data")
    )
    uid = volume(fixture).uid
    assert fixture.host.facts.get(f"content:{uid}")["size"] == 2 * GIB
    assert attachment(fixture).disk.size_bytes == 2 * GIB


async def test_connect_publishes_to_itself_and_releases(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, CONNECT.but(publish_if_needed=True))
    with fixture.service.context.store.read() as txn:
        published = txn.get(Publication, "data/take")
        assert published is not None
        assert published.client_operation == attachment(fixture).published_here
        assert list(txn.scan(PendingRelease)) == []
    await fixture.do(Disconnect(id="data"))
    fixture.server.away = True
    supervisor = Supervisor(fixture.service, retention_s=0)
    await supervisor.retry_releases()
    with fixture.service.context.store.read() as txn:
        assert len(list(txn.scan(PendingRelease))) == 1
    fixture.server.away = False
    await supervisor.retry_releases()
    assert raw_keys(fixture, "debt") == raw_keys(fixture, "publication") == []


async def test_disconnect_releases_only_its_own_publication(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, CONNECT.but(publish_if_needed=True), Disconnect(id="data"))
    await Supervisor(fixture.service, retention_s=0).retry_releases()
    assert raw_keys(fixture, "publication") == [b"publication/data/take"]


async def test_a_failed_step_is_rolled_back_and_its_error_returned(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    before = fixture.facts
    fixture.host.facts.light_fuse(6, when="after", how="error")
    with pytest.raises(CommandFailed) as caught:
        await fixture.do(PUBLISH)
    assert not_sticky(fixture.facts) == not_sticky(before)
    operation = fixture.service.operation(caught.value.facts["operation"])
    assert operation.state == "ROLLED_BACK"
    assert operation.failure is not None
    assert re.fullmatch(r"add backstore \S+ as LUN 0 to target \S+", operation.failure.step)
    assert raw_keys(fixture, "secret") == raw_keys(fixture, "publication") == []
    await fixture.do(PUBLISH)


async def test_equal_requests_join_and_others_wait(fixture: ServiceFixture) -> None:
    fixture.launcher.gate.clear()
    first = await fixture.service.submit(CREATE, caller=administrator("a"))
    second = await fixture.service.submit(CREATE, caller=administrator("b"))
    assert first.id == second.id
    other = CREATE.but(capacity_bytes=2 * GIB)
    with pytest.raises(Busy) as caught:
        await fixture.service.submit(other, caller=administrator("c"), deadline_s=0.05)
    assert caught.value.facts["operation"] == first.id
    with pytest.raises(DeadlineExceeded, match=first.id):
        await fixture.service.wait(first.id, 0.05)
    fixture.launcher.gate.set()
    await fixture.service.wait(first.id, 10)


async def test_concurrent_updates_of_one_volume_run_one_after_the_other(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE)
    sizes = [GIB + n * (1 << 20) for n in range(16)]

    async def grow(size: int) -> object:
        request = UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=size)
        try:
            return await fixture.do(request)
        except InvalidArgument:  # a larger size came first
            return None

    await asyncio.gather(*(grow(size) for size in sizes))
    assert volume(fixture).capacity_bytes == sizes[-1]
    assert fixture.host.facts.get("zvol:tank/zfsilo/data")["size"] == sizes[-1]


async def test_cancel_rolls_back(fixture: ServiceFixture) -> None:
    fixture.launcher.gate.clear()
    operation = await fixture.service.submit(CREATE, caller=administrator("a"))
    await asyncio.sleep(0)
    await fixture.service.cancel(operation.id)
    with pytest.raises(Busy, match="stopped before its end"):
        await fixture.service.wait(operation.id, 10)
    assert fixture.facts == {}


async def test_a_caller_that_goes_away_leaves_no_operation_without_a_unit(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, begun, free = fixture.service.context, threading.Event(), threading.Event()
    write = context.write

    async def slow(change: Callable[[Transaction], Any]) -> Any:
        def transact(txn: Transaction) -> Any:
            begun.set()
            assert free.wait(DEADLINE_S), "the caller is cancelled within the transaction"
            return change(txn)

        return await write(transact)

    monkeypatch.setattr(context, "write", slow)
    caller = administrator("uid 0")
    call = asyncio.ensure_future(fixture.service.submit(CREATE, caller=caller))
    assert await asyncio.to_thread(begun.wait, DEADLINE_S)
    call.cancel()
    await asyncio.wait({call})
    free.set()
    await context.write(lambda _txn: None)  # after the transaction of the request
    with context.read() as txn:
        (operation,) = (one for one in txn.scan(Operation) if one.subject == "volumes/data")
    assert (await fixture.service.wait(operation.id, DEADLINE_S)).state == "DONE"


async def test_a_unit_that_systemd_refuses_leaves_no_claim(fixture: ServiceFixture) -> None:
    fixture.launcher.refuses = True
    with pytest.raises(Unavailable, match="refused"):
        await fixture.do(CREATE)
    fixture.launcher.refuses = False
    await fixture.do(CREATE)


async def test_validate_only_plans_and_stores_nothing(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    before = raw_keys(fixture, "operation")
    planned = await fixture.service.plan(PUBLISH, caller=administrator("a"))
    assert [type(action.step).__name__ for action in planned.actions] == [
        "Epoch",
        "Backstore",
        "Target",
        "Lun",
        "Acl",
        "MappedLun",
        "Portals",
        "Enabled",
    ]
    assert raw_keys(fixture, "operation") == before
    assert raw_keys(fixture, "secret") == []


async def test_a_sync_restores_exports_after_a_reboot(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    before = fixture.facts
    fixture.host.facts.reboot()
    assert fixture.facts != before
    report = await fixture.service.reconciler.sync_all(caller=administrator("test"))
    assert (report.volumes, report.complaints) == (1, ())
    assert fixture.facts == before


@pytest.mark.parametrize(("restore", "back"), [("BOOT", True), ("NEVER", False)])
async def test_a_sync_restores_only_attachments_with_restore_boot(
    fixture: ServiceFixture, restore: Any, back: bool
) -> None:
    await fixture.do(CREATE, PUBLISH, CONNECT.but(restore=restore), *UP[3:])
    fixture.host.facts.reboot()
    report = await fixture.service.reconciler.sync_all(caller=administrator("test"))
    assert report.complaints == ()
    kinds = {name.partition(":")[0] for name in fixture.facts}
    assert "acl" in kinds
    assert ("mount" in kinds) == ("session" in kinds) == back


async def test_a_missing_zvol_is_not_recreated(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    del fixture.host.facts.memory["zvol:tank/zfsilo/data"]
    with pytest.raises(FailedPrecondition, match="is missing"):
        await fixture.service.reconciler.sync("data", caller=administrator("test"))
    with pytest.raises(FailedPrecondition, match="it is not recreated"):
        await fixture.do(CREATE)
    assert fixture.facts == {}


async def test_a_foreign_zvol_of_that_name_is_a_conflict(fixture: ServiceFixture) -> None:
    fixture.host.facts.memory["zvol:tank/zfsilo/data"] = {
        "uid": "x",
        "guid": "1",
        "size": 1,
        "thin": True,
    }
    before = fixture.facts
    with pytest.raises(Conflict, match="does not belong to this volume"):
        await fixture.do(CREATE)
    assert fixture.facts == before


async def test_a_repeated_request_restores_missing_mounts_and_sessions(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*UP)
    before = fixture.facts
    for name in [n for n in fixture.facts if n.partition(":")[0] in VOLATILE]:
        if name.startswith(("mount:", "session:")):
            del fixture.host.facts.memory[name]
    await fixture.do(*UP[2:])
    assert fixture.facts == before


async def test_watch_resumes_by_revision(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    seen: list[Operation] = []

    async def watch(after: int, count: int) -> None:
        async for operation in fixture.service.watch(after):
            seen.append(operation)
            if len(seen) == count:
                return

    await asyncio.wait_for(watch(0, 2), 5)
    assert [operation.kind for operation in seen] == ["create-host", "create"]
    task = asyncio.create_task(watch(seen[-1].revision, 3))
    await fixture.do(DeleteVolume(id="data"))
    await asyncio.wait_for(task, 5)
    assert seen[-1].kind == "delete"


async def test_watches_do_not_use_up_the_readers_of_the_store(fixture: ServiceFixture) -> None:
    async def wait_for_late() -> None:
        async for operation in fixture.service.watch(0):
            if operation.subject == "volumes/late":
                return

    watchers = [asyncio.create_task(wait_for_late()) for _ in range(300)]  # LMDB has 256 readers
    await asyncio.sleep(0)
    await fixture.do(CreateVolume(id="late", capacity_bytes=GIB))
    await asyncio.gather(*watchers)


async def test_ended_operations_are_removed_after_the_retention(fixture: ServiceFixture) -> None:
    fixture.launcher.gate.clear()
    live = await fixture.service.submit(CREATE, caller=administrator("a"))
    await Supervisor(fixture.service, retention_s=-10).forget()
    assert raw_keys(fixture, "operation") == [f"operation/{live.id}".encode()]
    fixture.launcher.gate.set()
    await fixture.service.wait(live.id, 10)
    await Supervisor(fixture.service, retention_s=-10).forget()
    assert raw_keys(fixture, "operation") == raw_keys(fixture, "changed") == []


async def test_young_operations_are_not_read_at_every_pass(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor runs a pass a second beside changes, and each ended operation is large."""
    await fixture.do(CREATE)
    looks: list[int] = []
    oldest = Transaction.oldest

    def counted(txn: Transaction, count: int) -> Iterator[Operation]:
        looks.append(count)
        return oldest(txn, count)

    monkeypatch.setattr(Transaction, "oldest", counted)
    supervisor = Supervisor(fixture.service, retention_s=3600)
    for _pass in range(3):
        await supervisor.forget()
    assert len(looks) == 1
    monkeypatch.setattr("zfsilod.service.supervisor.CROWDED", -1.0)
    for _pass in range(2):
        await supervisor.forget()
    assert len(looks) == 3
    assert raw_keys(fixture, "operation") == []


async def test_volumes_need_a_root_that_exists(fixture: ServiceFixture) -> None:
    fixture.service.context.settings = SETTINGS.but(root="")
    with pytest.raises(FailedPrecondition, match=r"server.root"):
        await fixture.do(CREATE)
    fixture.service.context.settings = SETTINGS.but(root="lake/zfsilo")
    with pytest.raises(FailedPrecondition, match="lake/zfsilo does not exist"):
        await fixture.do(CREATE)


async def test_a_view_joins_volume_publications_and_attachment(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    with fixture.service.context.store.read() as txn:
        shown = volume_view(txn, "data")
    assert shown.state == "MOUNTED"
    assert [publication.host for publication in shown.publications] == ["take"]
    assert shown.operation == ""


async def test_a_stage_that_failed_after_mkfs_is_completed_by_the_next(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(*UP[:3])

    def cut_off(*_words: Any, **_more: Any) -> None:
        raise Unavailable("the session is being recovered")

    for name in ("block.make_filesystem", "mounts.stage"):
        adapter, _dot, method = name.partition(".")
        with monkeypatch.context() as patched:
            patched.setattr(getattr(fixture.host, adapter), method, cut_off)
            with pytest.raises(Unavailable):
                await fixture.do(*UP[2:4])
    server_uuid = volume(fixture).filesystem.uuid
    await fixture.do(*UP[2:])
    assert attachment(fixture).filesystem.uuid == server_uuid

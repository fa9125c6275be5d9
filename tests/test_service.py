"""Requests through the service: every state up and down, refusals, joins, waits and watches."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import SETTINGS, House
from zfsilod.host.fake import VOLATILE
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    CommandFailed,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.records import Attachment, Operation, PendingRelease, Publication, Volume
from zfsilod.requests.attach import Connect, Grow, MountAt, Stage
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.hosts import CreateHost, DeleteHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from zfsilod.requests.request import Request

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


def volume(zfsilo: House) -> Volume:
    with zfsilo.service.context.store.read() as txn:
        record = txn.get(Volume, "data")
    assert record is not None
    return record


def attachment(zfsilo: House) -> Attachment:
    with zfsilo.service.context.store.read() as txn:
        record = txn.get(Attachment, "data")
    assert record is not None
    return record


def raw_keys(zfsilo: House, bucket: str) -> list[bytes]:
    with zfsilo.service.context.store.read() as txn:
        return [key for key, _value in txn.items(f"{bucket}/".encode())]


async def test_the_whole_ladder_leaves_nothing_behind(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    assert attachment(zfsilo).state == "MOUNTED"
    assert volume(zfsilo).filesystem.state == "READY"
    assert volume(zfsilo).filesystem.uuid == attachment(zfsilo).filesystem.uuid
    assert volume(zfsilo).guid
    await zfsilo.do(*DOWN)
    left = {n for n in zfsilo.facts if not n.startswith("content:")}
    assert left == {"point:/var/lib/zfsilo/staging/data"} - {"point:/var/lib/zfsilo/staging/data"}
    assert raw_keys(zfsilo, "claim") == raw_keys(zfsilo, "secret") == raw_keys(zfsilo, "live") == []


async def test_a_repeat_is_already_so_and_moves_nothing(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    before = zfsilo.facts
    for request in UP:
        operation = await zfsilo.do(request)
        assert operation.actions == (), f"{request.kind} moved something"
    assert zfsilo.facts == before


async def test_a_second_descent_is_fine(zfsilo: House) -> None:
    await zfsilo.do(*UP, *DOWN[:-1], *DOWN[:-1])
    assert volume(zfsilo).state == "CREATED"


async def test_data_keeps_its_filesystem_through_publications(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    uuid = attachment(zfsilo).filesystem.uuid
    await zfsilo.do(*DOWN[:-1], *UP[1:])
    assert attachment(zfsilo).filesystem.uuid == uuid
    assert volume(zfsilo).epoch == 2


async def test_growth_reaches_the_filesystem(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    await zfsilo.do(
        UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB), Grow(id="data")
    )
    uid = volume(zfsilo).uid
    assert zfsilo.host.facts.get(f"content:{uid}")["size"] == 2 * GIB
    assert attachment(zfsilo).disk.size_bytes == 2 * GIB


async def test_connect_publishes_to_itself_and_releases(zfsilo: House) -> None:
    await zfsilo.do(CREATE, CONNECT.but(publish_if_needed=True))
    with zfsilo.service.context.store.read() as txn:
        published = txn.get(Publication, "data/take")
        assert published is not None
        assert published.client_operation == attachment(zfsilo).published_here
        assert list(txn.scan(PendingRelease)) == []
    await zfsilo.do(Disconnect(id="data"))
    zfsilo.server.away = True
    supervisor = Supervisor(zfsilo.service, retention_s=0)
    await supervisor.retry_releases()
    with zfsilo.service.context.store.read() as txn:
        assert len(list(txn.scan(PendingRelease))) == 1
    zfsilo.server.away = False
    await supervisor.retry_releases()
    assert raw_keys(zfsilo, "debt") == raw_keys(zfsilo, "publication") == []


async def test_a_publication_of_somebody_else_is_not_released(zfsilo: House) -> None:
    await zfsilo.do(CREATE, PUBLISH, CONNECT.but(publish_if_needed=True), Disconnect(id="data"))
    await Supervisor(zfsilo.service, retention_s=0).retry_releases()
    assert raw_keys(zfsilo, "publication") == [b"publication/data/take"]


WRONG: list[tuple[tuple[Request[Any], ...], Request[Any], type[ZfsiloError], str]] = [
    ((), CREATE.but(id="Data"), InvalidArgument, "'Data' is no volume id"),
    ((), CREATE.but(id=""), InvalidArgument, "'' is no volume id"),
    ((), CREATE.but(id="data\n"), InvalidArgument, "is no volume id"),
    ((), CREATE.but(id="-x"), InvalidArgument, "is no volume id"),
    ((), CREATE.but(id="a" * 129), InvalidArgument, "is no volume id"),
    ((), CREATE.but(id="srv.mount"), InvalidArgument, "ends like a unit"),
    ((), CREATE.but(capacity_bytes=0), InvalidArgument, "cannot have 0 B"),
    ((), CREATE.but(capacity_bytes=-1), InvalidArgument, "cannot have -1 B"),
    ((), CREATE.but(thin=False, capacity_bytes=2 << 40), ResourceExhausted, "free"),
    ((), CREATE.but(capacity_bytes=3 << 40), ResourceExhausted, "overcommit"),
    (
        (),
        CREATE.but(limit_bytes=GIB - 1),
        InvalidArgument,
        "more than the limit of 1.0 GiB (1073741823 bytes)",
    ),
    ((), CREATE.but(properties=(("mountpoint", "-x"),)), InvalidArgument, "mountpoint"),
    ((), CREATE.but(properties=(("volsize", "1"),)), InvalidArgument, "volsize"),
    ((), CREATE.but(properties=(("volblocksize", "1000"),)), InvalidArgument, "volblocksize"),
    ((), CREATE.but(labels=(("-", "x"),)), InvalidArgument, "label"),
    ((CREATE,), CREATE.but(capacity_bytes=2 * GIB), AlreadyExists, "another capacity_bytes"),
    ((), DeleteVolume(id="data"), NotFound, "no volume data"),
    ((CREATE, PUBLISH), DeleteVolume(id="data"), FailedPrecondition, "published to take"),
    ((CREATE,), DeleteVolume(id="data", etag="1"), Busy, "read it again"),
    (
        (CREATE,),
        UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=GIB // 2),
        InvalidArgument,
        "data has 1.0 GiB (1073741824 bytes): a volume never shrinks",
    ),
    ((CREATE,), UpdateVolume(id="data", mask=("uid",)), InvalidArgument, "invalid update mask uid"),
    ((), PUBLISH, NotFound, "no volume data"),
    ((CREATE,), PUBLISH.but(host="other"), NotFound, "unknown host other"),
    ((CREATE, PUBLISH), PUBLISH.but(readonly=True), AlreadyExists, "R, read-only: unpublish"),
    ((CREATE,), PUBLISH.but(access_mode="MULTI_NODE_MULTI_WRITER"), InvalidArgument, "allows"),
    (
        (CREATE, PUBLISH, CreateHost(id="other", iqn="iqn.2024-01.lab.other:host")),
        PUBLISH.but(host="other"),
        FailedPrecondition,
        "published to take",
    ),
    ((CREATE, CreateHost(id="bare")), PUBLISH.but(host="bare"), FailedPrecondition, "no IQN"),
    ((CREATE, PUBLISH, CONNECT), Unpublish(volume="data"), FailedPrecondition, "still logged in"),
    ((CREATE,), CONNECT, FailedPrecondition, "not published"),
    ((CREATE, PUBLISH), CONNECT.but(epoch=7), FailedPrecondition, "epoch 7"),
    (
        (CREATE, PUBLISH, CONNECT),
        CONNECT.but(id="again"),
        AlreadyExists,
        "already connected as data",
    ),
    ((), Stage(id="data"), FailedPrecondition, "not connected"),
    (UP[:3], Stage(id="data", fs_type="ntfs"), InvalidArgument, "use ext4 or xfs"),
    (UP[:3], Stage(id="data", readonly=True), FailedPrecondition, "no filesystem yet"),
    (UP[:3], Stage(id="data", path="srv"), InvalidArgument, "must be absolute"),
    (UP[:3], Stage(id="data", path="/srv/../etc"), InvalidArgument, "without .."),
    (UP[:3], Stage(id="data", path="/"), InvalidArgument, "no path"),
    (UP[:3], Stage(id="data", mount_options=("suid,exec",)), InvalidArgument, "mount option"),
    (UP[:4], Stage(id="data", path="/elsewhere"), FailedPrecondition, "other parameters"),
    (UP[:3], MountAt(id="data", path="/srv/data"), FailedPrecondition, "stage it first"),
    (UP, MountAt(id="data", path="/srv/data", readonly=True), AlreadyExists, "other parameters"),
    (UP, Unstage(id="data"), FailedPrecondition, "mounted at /srv/data"),
    (UP, Disconnect(id="data"), FailedPrecondition, "unmount and unstage"),
    ((), Grow(id="data"), FailedPrecondition, "not connected"),
    ((), CreateHost(id="take", iqn="iqn.2024-01.lab.else:x"), AlreadyExists, "another iqn"),
    ((), CreateHost(id="clone", iqn="iqn.2024-01.lab.take:host"), AlreadyExists, "host take"),
    ((), CreateHost(id="bad", iqn="iqn/../x"), InvalidArgument, "not an IQN"),
    ((CREATE, PUBLISH), DeleteHost(id="take"), FailedPrecondition, "published to take: data"),
]


@pytest.mark.parametrize(("before", "wrong", "error", "words"), WRONG)
async def test_bad_input_gets_one_sentence_and_changes_nothing(
    zfsilo: House,
    before: tuple[Request[Any], ...],
    wrong: Request[Any],
    error: type[ZfsiloError],
    words: str,
) -> None:
    if before:
        await zfsilo.do(*before)
    facts, claims = zfsilo.facts, raw_keys(zfsilo, "claim")
    with pytest.raises(error) as caught:
        await zfsilo.do(wrong)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.reason
    assert zfsilo.facts == facts
    assert raw_keys(zfsilo, "claim") == claims == []


async def test_a_failed_step_is_taken_back_and_its_error_told(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    before = zfsilo.facts
    zfsilo.host.facts.light_fuse(5, when="after", how="error")
    with pytest.raises(CommandFailed) as caught:
        await zfsilo.do(PUBLISH)
    assert zfsilo.facts == before
    operation = zfsilo.service.operation(caught.value.facts["operation"])
    assert operation.state == "ROLLED_BACK"
    assert operation.failure is not None
    assert re.fullmatch(r"add backstore \S+ as LUN 0 to target \S+", operation.failure.step)
    assert raw_keys(zfsilo, "secret") == raw_keys(zfsilo, "publication") == []
    await zfsilo.do(PUBLISH)


async def test_equal_requests_join_and_others_wait(zfsilo: House) -> None:
    zfsilo.launcher.gate.clear()
    first = await zfsilo.service.submit(CREATE, caller="a")
    second = await zfsilo.service.submit(CREATE, caller="b")
    assert first.id == second.id
    other = CREATE.but(capacity_bytes=2 * GIB)
    with pytest.raises(Busy) as caught:
        await zfsilo.service.submit(other, caller="c", deadline_s=0.05)
    assert caught.value.facts["operation"] == first.id
    with pytest.raises(DeadlineExceeded, match=first.id):
        await zfsilo.service.wait(first.id, 0.05)
    zfsilo.launcher.gate.set()
    await zfsilo.service.wait(first.id, 10)


async def test_sixteen_requests_for_one_volume_end_in_order(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    sizes = [GIB + n * (1 << 20) for n in range(16)]

    async def grow(size: int) -> object:
        request = UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=size)
        try:
            return await zfsilo.do(request)
        except InvalidArgument:  # a larger one was first
            return None

    await asyncio.gather(*(grow(size) for size in sizes))
    assert volume(zfsilo).capacity_bytes == sizes[-1]
    assert zfsilo.host.facts.get("zvol:tank/zfsilo/data")["size"] == sizes[-1]


async def test_cancel_takes_back(zfsilo: House) -> None:
    zfsilo.launcher.gate.clear()
    operation = await zfsilo.service.submit(CREATE, caller="a")
    await asyncio.sleep(0)
    await zfsilo.service.cancel(operation.id)
    with pytest.raises(Busy, match="stopped before its end"):
        await zfsilo.service.wait(operation.id, 10)
    assert zfsilo.facts == {}


async def test_a_unit_that_systemd_refuses_leaves_no_claim(zfsilo: House) -> None:
    zfsilo.launcher.refuses = True
    with pytest.raises(Unavailable, match="refused"):
        await zfsilo.do(CREATE)
    zfsilo.launcher.refuses = False
    await zfsilo.do(CREATE)


async def test_validate_only_plans_and_stores_nothing(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    before = raw_keys(zfsilo, "operation")
    planned = await zfsilo.service.plan(PUBLISH, caller="a")
    assert [type(action.step).__name__ for action in planned.actions] == [
        "Backstore",
        "Target",
        "Lun",
        "Portals",
        "Enabled",
        "Acl",
        "MappedLun",
    ]
    assert raw_keys(zfsilo, "operation") == before
    assert raw_keys(zfsilo, "secret") == []


async def test_after_a_reboot_the_exports_come_back(zfsilo: House) -> None:
    await zfsilo.do(CREATE, PUBLISH)
    before = zfsilo.facts
    zfsilo.host.facts.reboot()
    assert zfsilo.facts != before
    report = await zfsilo.service.reconciler.sync_all(caller="test")
    assert (report.volumes, report.complaints) == (1, ())
    assert zfsilo.facts == before


@pytest.mark.parametrize(("restore", "back"), [("BOOT", True), ("NEVER", False)])
async def test_only_what_is_to_be_restored_comes_back(
    zfsilo: House, restore: Any, back: bool
) -> None:
    await zfsilo.do(CREATE, PUBLISH, CONNECT.but(restore=restore), *UP[3:])
    zfsilo.host.facts.reboot()
    report = await zfsilo.service.reconciler.sync_all(caller="test")
    assert report.complaints == ()
    kinds = {name.partition(":")[0] for name in zfsilo.facts}
    assert "acl" in kinds
    assert ("mount" in kinds) == ("session" in kinds) == back


async def test_a_vanished_zvol_is_lost_and_never_made_anew(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    del zfsilo.host.facts.memory["zvol:tank/zfsilo/data"]
    with pytest.raises(FailedPrecondition, match="is missing"):
        await zfsilo.service.reconciler.sync("data", caller="test")
    with pytest.raises(FailedPrecondition, match="it is not recreated"):
        await zfsilo.do(CREATE)
    assert zfsilo.facts == {}


async def test_a_foreign_zvol_of_that_name_is_a_conflict(zfsilo: House) -> None:
    zfsilo.host.facts.memory["zvol:tank/zfsilo/data"] = {
        "uid": "x",
        "guid": "1",
        "size": 1,
        "thin": True,
    }
    before = zfsilo.facts
    with pytest.raises(Conflict, match="not ours"):
        await zfsilo.do(CREATE)
    assert zfsilo.facts == before


async def test_a_vanished_mount_is_not_already_so(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    before = zfsilo.facts
    for name in [n for n in zfsilo.facts if n.partition(":")[0] in VOLATILE]:
        if name.startswith(("mount:", "session:")):
            del zfsilo.host.facts.memory[name]
    await zfsilo.do(*UP[2:])
    assert zfsilo.facts == before


async def test_watch_resumes_by_revision(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    seen: list[Operation] = []

    async def watch(after: int, count: int) -> None:
        async for operation in zfsilo.service.watch(after):
            seen.append(operation)
            if len(seen) == count:
                return

    await asyncio.wait_for(watch(0, 2), 5)
    assert [operation.kind for operation in seen] == ["create-host", "create"]
    task = asyncio.create_task(watch(seen[-1].revision, 3))
    await zfsilo.do(DeleteVolume(id="data"))
    await asyncio.wait_for(task, 5)
    assert seen[-1].kind == "delete"


async def test_any_number_may_wait_for_news(zfsilo: House) -> None:
    async def next_news() -> None:
        async for operation in zfsilo.service.watch(0):
            if operation.subject == "volumes/late":
                return

    watchers = [asyncio.create_task(next_news()) for _ in range(300)]  # LMDB has 256 readers
    await asyncio.sleep(0)
    await zfsilo.do(CreateVolume(id="late", capacity_bytes=GIB))
    await asyncio.gather(*watchers)


async def test_ended_operations_are_forgotten_in_time(zfsilo: House) -> None:
    zfsilo.launcher.gate.clear()
    live = await zfsilo.service.submit(CREATE, caller="a")
    await Supervisor(zfsilo.service, retention_s=-10).forget()
    assert raw_keys(zfsilo, "operation") == [f"operation/{live.id}".encode()]
    zfsilo.launcher.gate.set()
    await zfsilo.service.wait(live.id, 10)
    await Supervisor(zfsilo.service, retention_s=-10).forget()
    assert raw_keys(zfsilo, "operation") == raw_keys(zfsilo, "changed") == []


async def test_no_root_no_volumes(zfsilo: House) -> None:
    zfsilo.service.context.settings = SETTINGS.but(root="")
    with pytest.raises(FailedPrecondition, match=r"server.root"):
        await zfsilo.do(CREATE)
    zfsilo.service.context.settings = SETTINGS.but(root="lake/zfsilo")
    with pytest.raises(FailedPrecondition, match="lake/zfsilo does not exist"):
        await zfsilo.do(CREATE)


async def test_view_joins_both_sides(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    with zfsilo.service.context.store.read() as txn:
        shown = volume_view(txn, "data")
    assert shown.state == "MOUNTED"
    assert [publication.host for publication in shown.publications] == ["take"]
    assert shown.operation == ""

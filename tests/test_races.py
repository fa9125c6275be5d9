"""Races: facts and records that change between the gathering of inputs and the plan."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import SETTINGS, administrator, house
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import (
    Attachment,
    Operation,
    PendingRelease,
    Publication,
    Trashed,
    Volume,
)
from zfsilod.requests import orphans
from zfsilod.requests.attach import Connect, MountAt, Stage
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.orphan_scan import find_orphans
from zfsilod.service.pool_scan import find_zvol
from zfsilod.service.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.doubles import House
    from zfsilod.model.host_facts import Disk

GIB = 1 << 30
TARGET_USE = ("session", "mount")
PUBLISHED = (
    CreateVolume(id="data", capacity_bytes=GIB, hosts=("take",)),
    Publish(volume="data", host="take"),
)
CONNECT = Connect(id="data", server="give", volume="data")
UP = (CONNECT, Stage(id="data"), MountAt(id="data", path="/srv/data"))


def client_facts(zfsilo: House) -> dict[str, object]:
    return {n: v for n, v in zfsilo.facts.items() if n.partition(":")[0] in TARGET_USE}


def lose_sessions(zfsilo: House) -> None:
    """Remove the facts that a client loses in a reboot; the exports of its server stay."""
    for name in client_facts(zfsilo):
        zfsilo.host.facts.effect(name, None)


def attachment(zfsilo: House, name: str = "data") -> Attachment | None:
    with zfsilo.service.context.store.read() as txn:
        return txn.get(Attachment, name)


def hold_started_workers(zfsilo: House) -> Callable[[], None]:
    """Make workers started so far wait until the returned function is called; not later ones."""
    gate, zfsilo.launcher.gate = zfsilo.launcher.gate, asyncio.Event()
    zfsilo.launcher.gate.set()
    gate.clear()
    return gate.set


def notice_wait(zfsilo: House) -> asyncio.Event:
    """Return an event that is set when a task starts to wait for a change of an operation."""
    waiting, changes = asyncio.Event(), zfsilo.service.executor.changes
    wait = changes.wait

    async def wait_and_tell() -> Any:
        waiting.set()
        return await wait()

    changes.wait = wait_and_tell  # type: ignore[method-assign]
    return waiting


async def soon(fact: Callable[[], Any]) -> None:
    until = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_a_volume_reconnected_after_a_reboot_is_not_cleared(zfsilo: House) -> None:
    other = Connect(id="a", server="give", volume="a")
    await zfsilo.do(
        CreateVolume(id="a", capacity_bytes=GIB),
        Publish(volume="a", host="take"),
        other,
        *PUBLISHED,
        *UP,
    )
    lose_sessions(zfsilo)
    zfsilo.service.context.boot_id = "f" * 32
    zfsilo.launcher.gate.clear()
    cleared = asyncio.create_task(zfsilo.service.reconciler.clear_leftovers(DAEMON))
    await soon(lambda: any(not task.done() for task in zfsilo.launcher.tasks.values()))
    release = hold_started_workers(zfsilo)
    await zfsilo.do(*UP)
    before = client_facts(zfsilo)
    release()
    await cleared
    assert attachment(zfsilo, "a") is None
    assert client_facts(zfsilo) == before


async def test_a_descent_that_waited_looks_at_the_session_again(zfsilo: House) -> None:
    await zfsilo.do(*PUBLISHED, CONNECT.but(restore="BOOT"), *UP[1:])
    lose_sessions(zfsilo)
    zfsilo.launcher.gate.clear()
    restored = await zfsilo.service.submit(SyncVolume(id="data"), caller=administrator("zfsilod"))
    waiting = notice_wait(zfsilo)
    asked = asyncio.create_task(zfsilo.do(UnmountFrom(id="data")))
    await soon(lambda: asked.done() or waiting.is_set())
    zfsilo.launcher.gate.set()
    await zfsilo.service.wait(restored.id, 10)
    assert [type(action.step).__name__ for action in (await asked).actions][1] == "BindMount"
    assert zfsilo.host.facts.names("session")


async def test_an_older_connect_does_not_replace_a_newer_connection(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(*PUBLISHED)
    is_known, gate, first = zfsilo.host.iscsi.has_any_session, threading.Event(), [True]

    def slow(disk: Disk) -> bool:
        if first:
            first.clear()
            gate.wait(10)
        return is_known(disk)

    monkeypatch.setattr(zfsilo.host.iscsi, "has_any_session", slow)
    old = asyncio.create_task(zfsilo.do(CONNECT.but(epoch=1)))
    await soon(lambda: not first)
    await zfsilo.do(Unpublish(volume="data", host="take"), PUBLISHED[1], CONNECT.but(epoch=2))
    before = client_facts(zfsilo)
    gate.set()
    with pytest.raises(
        FailedPrecondition, match="is connected with publication 2, but give reports 1"
    ):
        await old
    assert client_facts(zfsilo) == before
    assert zfsilo.service.context.store.chap("data") == zfsilo.service.context.store.chap(
        "data/take"
    )


async def test_a_deletion_that_waited_for_a_failed_one_keeps_the_zvol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, SETTINGS.but(trash_retention_s=86400)) as zfsilo:
        await zfsilo.do(PUBLISHED[0])
        action, moved, go = zfsilo.host.zfs.rename, threading.Event(), threading.Event()

        def slow(*words: Any, **more: Any) -> None:
            action(*words, **more)
            if not moved.is_set():
                moved.set()
                go.wait(10)
                raise Unavailable("zfs did not end within 120 s")

        monkeypatch.setattr(zfsilo.host.zfs, "rename", slow)
        one = await zfsilo.service.submit(DeleteVolume(id="data"), caller=administrator("one"))
        await asyncio.to_thread(moved.wait, 10)
        waiting = notice_wait(zfsilo)
        two = asyncio.create_task(zfsilo.do(DeleteVolume(id="data", dependents="KEEP")))
        await soon(lambda: waiting.is_set())
        go.set()
        with pytest.raises(Unavailable):
            await zfsilo.service.wait(one.id, 10)
        await two
        with zfsilo.service.context.store.read() as txn:
            (kept,) = txn.scan(Trashed)
        assert zfsilo.host.facts.names("zvol") == [kept.volume.dataset]


async def test_a_release_waits_while_the_volume_is_attached_again(zfsilo: House) -> None:
    supervisor = Supervisor(zfsilo.service, retention_s=1 << 30)
    again = CONNECT.but(publish_if_needed=True)
    await zfsilo.do(PUBLISHED[0], again, Disconnect(id="data"), again, *UP[1:])
    lose_sessions(zfsilo)  # the server rebooted and its initiator has not logged in yet
    await supervisor.retry_releases()
    with zfsilo.service.context.store.read() as txn:
        assert txn.get(Publication, "data/take") is not None
    await zfsilo.do(Disconnect(id="data", force=True))
    await supervisor.retry_releases()
    with zfsilo.service.context.store.read() as txn:
        assert (list(txn.scan(Publication)), list(txn.scan(PendingRelease))) == ([], [])


async def test_a_release_stays_pending_while_its_server_is_unknown(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(PUBLISHED[0], CONNECT.but(publish_if_needed=True), Disconnect(id="data"))
    supervisor = Supervisor(zfsilo.service, retention_s=1 << 30)

    async def unknown(*_words: Any, **_more: Any) -> None:
        raise NotFound("there is no server give", reason="NO_SERVER")

    with monkeypatch.context() as patched:
        patched.setattr(zfsilo.server, "release", unknown)
        await supervisor.retry_releases()
    await supervisor.retry_releases()
    with zfsilo.service.context.store.read() as txn:
        assert (list(txn.scan(Publication)), list(txn.scan(PendingRelease))) == ([], [])


async def test_the_boot_sync_returns_to_volumes_that_were_busy(zfsilo: House) -> None:
    await zfsilo.do(*PUBLISHED)
    zfsilo.launcher.gate.clear()
    labels = UpdateVolume(id="data", mask=("labels",), labels=(("for", "tests"),))
    submitted = await zfsilo.service.submit(labels, caller=administrator("x"))
    zfsilo.host.facts.reboot()
    assert (await zfsilo.service.reconciler.sync_all(DAEMON)).unfinished
    zfsilo.launcher.gate.set()
    await zfsilo.service.wait(submitted.id, 10)
    assert not (await zfsilo.service.reconciler.sync_all(DAEMON)).unfinished
    assert zfsilo.host.facts.names("target")


async def test_the_boot_sync_returns_to_volumes_that_failed(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(*PUBLISHED)
    zfsilo.host.facts.reboot()

    def late(*_words: Any, **_more: Any) -> None:
        raise Unavailable("the device did not appear", reason="NO_DEVICE")

    with monkeypatch.context() as patched:
        patched.setattr(zfsilo.host.lio, "add_backstore", late)
        assert (await zfsilo.service.reconciler.sync_all(DAEMON)).unfinished
    assert not (await zfsilo.service.reconciler.sync_all(DAEMON)).unfinished


async def test_one_volume_is_not_connected_under_two_names_at_once(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(*PUBLISHED)
    login, users, iscsi = zfsilo.host.iscsi.login, zfsilo.host.iscsi.users, zfsilo.host.iscsi
    gate, looked, go = threading.Event(), threading.Event(), threading.Event()

    def slow_login(disk: Disk) -> None:
        login(disk)
        gate.wait(10)

    def slow_users(disk: Disk) -> list[str]:
        paths = users(disk)
        looked.set()
        go.wait(10)
        return paths

    monkeypatch.setattr(iscsi, "login", slow_login)
    one = await zfsilo.service.submit(CONNECT, caller=administrator("one"))
    await soon(lambda: zfsilo.host.facts.names("session"))
    monkeypatch.setattr(iscsi, "users", slow_users)
    two = asyncio.create_task(zfsilo.do(CONNECT.but(id="two")))
    await asyncio.to_thread(looked.wait, 10)
    gate.set()
    await zfsilo.service.wait(one.id, 10)
    await zfsilo.do(*UP[1:])
    before = client_facts(zfsilo)
    go.set()
    with pytest.raises(AlreadyExists, match="already connected as data"):
        await two
    assert client_facts(zfsilo) == before


async def test_an_orphan_is_not_adopted_during_its_removal(zfsilo: House) -> None:
    await zfsilo.do(PUBLISHED[0])
    await zfsilo.service.context.write(lambda txn: txn.drop(Volume.bucket(), "data"))
    zfsilo.launcher.gate.clear()
    request = orphans.RemoveOrphans(names=("zvol/tank/zfsilo/data",))
    removed = await zfsilo.service.submit(request, caller=administrator("root"))
    adoption_request = await find_zvol(zfsilo.service.context, "tank/zfsilo/data", "data")
    waiting = notice_wait(zfsilo)
    adopted = asyncio.create_task(zfsilo.do(adoption_request))
    await soon(lambda: adopted.done() or waiting.is_set())
    zfsilo.launcher.gate.set()
    await zfsilo.service.wait(removed.id, 10)
    with pytest.raises(FailedPrecondition, match="is gone"):
        await adopted


async def test_an_orphan_is_not_connected_during_its_removal(zfsilo: House) -> None:
    await zfsilo.do(*PUBLISHED, CONNECT)
    await zfsilo.service.context.write(lambda txn: txn.drop(Attachment.bucket(), "data"))
    names = tuple(orphan.name for orphan in await find_orphans(zfsilo.service.context))
    zfsilo.launcher.gate.clear()
    removed = await zfsilo.service.submit(
        orphans.RemoveOrphans(names=names), caller=administrator("root")
    )
    release = hold_started_workers(zfsilo)
    waiting = notice_wait(zfsilo)
    up = asyncio.create_task(zfsilo.do(*UP))
    await soon(lambda: up.done() or waiting.is_set())
    release()
    await zfsilo.service.wait(removed.id, 10)
    await up
    assert {name.partition(":")[0] for name in client_facts(zfsilo)} == {"session", "mount"}


async def test_recovery_ignores_a_list_of_units_that_is_out_of_date(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(*PUBLISHED, CONNECT)
    heard: list[str] = []
    hint, zfsilo.launcher.hint = zfsilo.launcher.hint, heard.append
    staged = await zfsilo.service.submit(UP[1], caller=administrator("x"))
    await soon(lambda: heard)
    assert zfsilo.service.operation(staged.id).state == "WAITING"
    await soon(lambda: not zfsilo.service.executor.is_held(staged.id))
    make, at_mkfs, go = zfsilo.host.block.make_filesystem, threading.Event(), threading.Event()
    refused: list[str] = []

    def slow(*words: Any) -> None:
        at_mkfs.set()
        go.wait(10)
        make(*words)

    async def late() -> set[str]:
        zfsilo.launcher.hint = hint
        hint(heard[0])
        await asyncio.to_thread(at_mkfs.wait, 10)
        return set()  # the units when the list was requested

    async def roll_back(operation: Operation) -> None:
        refused.append(operation.id)

    monkeypatch.setattr(zfsilo.host.block, "make_filesystem", slow)
    with monkeypatch.context() as patched:
        patched.setattr(zfsilo.launcher, "running", late)
        patched.setattr(zfsilo.launcher, "rollback", roll_back)
        await Supervisor(zfsilo.service, retention_s=1 << 30).recover()
    go.set()
    await zfsilo.service.wait(staged.id, 10)
    assert refused == []

"""Races: facts and records that change between the gathering of inputs and the plan."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import SETTINGS, administrator, service_fixture
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
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
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

    from tests.service_fixture import ServiceFixture
    from zfsilod.model.host_facts import Disk

GIB = 1 << 30
TARGET_USE = ("session", "mount")
PUBLISHED = (
    CreateVolume(id="data", capacity_bytes=GIB, hosts=("take",)),
    Publish(volume="data", host="take"),
)
CONNECT = Connect(id="data", server="give", volume="data")
UP = (CONNECT, Stage(id="data"), MountAt(id="data", path="/srv/data"))


def client_facts(fixture: ServiceFixture) -> dict[str, object]:
    return {n: v for n, v in fixture.facts.items() if n.partition(":")[0] in TARGET_USE}


def lose_sessions(fixture: ServiceFixture) -> None:
    """Remove the facts that a client loses in a reboot; the exports of its server stay."""
    for name in client_facts(fixture):
        fixture.host.facts.effect(name, None)


def attachment(fixture: ServiceFixture, name: str = "data") -> Attachment | None:
    with fixture.service.context.store.read() as txn:
        return txn.get(Attachment, name)


def hold_started_workers(fixture: ServiceFixture) -> Callable[[], None]:
    """Make workers started so far wait until the returned function is called; not later ones."""
    gate, fixture.launcher.gate = fixture.launcher.gate, asyncio.Event()
    fixture.launcher.gate.set()
    gate.clear()
    return gate.set


def notice_wait(fixture: ServiceFixture) -> asyncio.Event:
    """Return an event that is set when a task starts to wait for a change of an operation."""
    waiting, changes = asyncio.Event(), fixture.service.executor.changes
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


async def test_a_volume_reconnected_after_a_reboot_is_not_cleared(fixture: ServiceFixture) -> None:
    other = Connect(id="a", server="give", volume="a")
    await fixture.do(
        CreateVolume(id="a", capacity_bytes=GIB),
        Publish(volume="a", host="take"),
        other,
        *PUBLISHED,
        *UP,
    )
    lose_sessions(fixture)
    fixture.service.context.boot_id = "f" * 32
    fixture.launcher.gate.clear()
    cleared = asyncio.create_task(fixture.service.reconciler.clear_leftovers(DAEMON))
    await soon(lambda: any(not task.done() for task in fixture.launcher.tasks.values()))
    release = hold_started_workers(fixture)
    await fixture.do(*UP)
    before = client_facts(fixture)
    release()
    await cleared
    assert attachment(fixture, "a") is None
    assert client_facts(fixture) == before


async def test_an_unmount_that_waited_looks_at_the_session_again(fixture: ServiceFixture) -> None:
    await fixture.do(*PUBLISHED, CONNECT.but(restore="BOOT"), *UP[1:])
    lose_sessions(fixture)
    fixture.launcher.gate.clear()
    restored = await fixture.service.submit(SyncVolume(id="data"), caller=administrator("zfsilod"))
    waiting = notice_wait(fixture)
    asked = asyncio.create_task(fixture.do(UnmountFrom(id="data")))
    await soon(lambda: asked.done() or waiting.is_set())
    fixture.launcher.gate.set()
    await fixture.service.wait(restored.id, 10)
    assert [type(action.step).__name__ for action in (await asked).actions][1] == "BindMount"
    assert fixture.host.facts.names("session")


async def test_an_older_connect_does_not_replace_a_newer_connection(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(*PUBLISHED)
    is_known, gate, first = fixture.host.iscsi.has_any_session, threading.Event(), [True]

    def slow(disk: Disk) -> bool:
        if first:
            first.clear()
            gate.wait(10)
        return is_known(disk)

    monkeypatch.setattr(fixture.host.iscsi, "has_any_session", slow)
    old = asyncio.create_task(fixture.do(CONNECT.but(epoch=1)))
    await soon(lambda: not first)
    await fixture.do(Unpublish(volume="data", host="take"), PUBLISHED[1], CONNECT.but(epoch=3))
    before = client_facts(fixture)
    gate.set()
    with pytest.raises(
        FailedPrecondition, match="is connected with publication 3, but give reports 1"
    ):
        await old
    assert client_facts(fixture) == before
    assert fixture.service.context.store.chap("data") == fixture.service.context.store.chap(
        "data/take"
    )


async def test_a_deletion_that_waited_for_a_failed_one_keeps_the_zvol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service_fixture(tmp_path, SETTINGS.but(trash_retention_s=86400)) as fixture:
        await fixture.do(PUBLISHED[0])
        action, moved, go = fixture.host.zfs.rename, threading.Event(), threading.Event()

        def slow(*words: Any, **more: Any) -> None:
            action(*words, **more)
            if not moved.is_set():
                moved.set()
                go.wait(10)
                raise Unavailable("zfs did not end within 120 s")

        monkeypatch.setattr(fixture.host.zfs, "rename", slow)
        one = await fixture.service.submit(DeleteVolume(id="data"), caller=administrator("one"))
        await asyncio.to_thread(moved.wait, 10)
        waiting = notice_wait(fixture)
        two = asyncio.create_task(fixture.do(DeleteVolume(id="data", dependents="KEEP")))
        await soon(lambda: waiting.is_set())
        go.set()
        with pytest.raises(Unavailable):
            await fixture.service.wait(one.id, 10)
        await two
        with fixture.service.context.store.read() as txn:
            (kept,) = txn.scan(Trashed)
        assert fixture.host.facts.names("zvol") == [kept.volume.dataset]


async def test_a_release_waits_while_the_volume_is_attached_again(fixture: ServiceFixture) -> None:
    supervisor = Supervisor(fixture.service, retention_s=1 << 30)
    again = CONNECT.but(publish_if_needed=True)
    await fixture.do(PUBLISHED[0], again, Disconnect(id="data"), again, *UP[1:])
    lose_sessions(fixture)  # the server rebooted and its initiator has not logged in yet
    await supervisor.retry_releases()
    with fixture.service.context.store.read() as txn:
        assert txn.get(Publication, "data/take") is not None
    await fixture.do(Disconnect(id="data", force=True))
    await supervisor.retry_releases()
    with fixture.service.context.store.read() as txn:
        assert (list(txn.scan(Publication)), list(txn.scan(PendingRelease))) == ([], [])


async def test_a_release_stays_pending_while_its_server_is_unknown(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(PUBLISHED[0], CONNECT.but(publish_if_needed=True), Disconnect(id="data"))
    supervisor = Supervisor(fixture.service, retention_s=1 << 30)

    async def unknown(*_words: Any, **_more: Any) -> None:
        raise NotFound("there is no server give", reason="NO_SERVER")

    with monkeypatch.context() as patched:
        patched.setattr(fixture.server, "release", unknown)
        await supervisor.retry_releases()
    await supervisor.retry_releases()
    with fixture.service.context.store.read() as txn:
        assert (list(txn.scan(Publication)), list(txn.scan(PendingRelease))) == ([], [])


async def test_the_boot_sync_returns_to_volumes_that_were_busy(fixture: ServiceFixture) -> None:
    await fixture.do(*PUBLISHED)
    fixture.launcher.gate.clear()
    labels = UpdateVolume(id="data", mask=("labels",), labels=(("for", "tests"),))
    submitted = await fixture.service.submit(labels, caller=administrator("x"))
    fixture.host.facts.reboot()
    assert (await fixture.service.reconciler.sync_all(DAEMON)).unfinished
    fixture.launcher.gate.set()
    await fixture.service.wait(submitted.id, 10)
    assert not (await fixture.service.reconciler.sync_all(DAEMON)).unfinished
    assert fixture.host.facts.names("target")


async def test_the_boot_sync_returns_to_volumes_that_failed(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(*PUBLISHED)
    fixture.host.facts.reboot()

    def late(*_words: Any, **_more: Any) -> None:
        raise Unavailable("the device did not appear", reason="NO_DEVICE")

    with monkeypatch.context() as patched:
        patched.setattr(fixture.host.lio, "add_backstore", late)
        assert (await fixture.service.reconciler.sync_all(DAEMON)).unfinished
    assert not (await fixture.service.reconciler.sync_all(DAEMON)).unfinished


async def test_one_volume_is_not_connected_under_two_names_at_once(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(*PUBLISHED)
    login, users, iscsi = fixture.host.iscsi.login, fixture.host.iscsi.users, fixture.host.iscsi
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
    one = await fixture.service.submit(CONNECT, caller=administrator("one"))
    await soon(lambda: fixture.host.facts.names("session"))
    monkeypatch.setattr(iscsi, "users", slow_users)
    two = asyncio.create_task(fixture.do(CONNECT.but(id="two")))
    await asyncio.to_thread(looked.wait, 10)
    gate.set()
    await fixture.service.wait(one.id, 10)
    await fixture.do(*UP[1:])
    before = client_facts(fixture)
    go.set()
    with pytest.raises(AlreadyExists, match="already connected as data"):
        await two
    assert client_facts(fixture) == before


async def test_an_orphan_is_not_adopted_during_its_removal(fixture: ServiceFixture) -> None:
    await fixture.do(PUBLISHED[0])
    await fixture.service.context.write(lambda txn: txn.drop(Volume.bucket(), "data"))
    fixture.launcher.gate.clear()
    request = orphans.RemoveOrphans(names=("zvol/tank/zfsilo/data",))
    removed = await fixture.service.submit(request, caller=administrator("root"))
    adoption_request = await find_zvol(fixture.service.context, "tank/zfsilo/data", "data")
    waiting = notice_wait(fixture)
    adopted = asyncio.create_task(fixture.do(adoption_request))
    await soon(lambda: adopted.done() or waiting.is_set())
    fixture.launcher.gate.set()
    await fixture.service.wait(removed.id, 10)
    with pytest.raises(FailedPrecondition, match="does not exist any more"):
        await adopted


async def test_an_orphan_is_not_connected_during_its_removal(fixture: ServiceFixture) -> None:
    await fixture.do(*PUBLISHED, CONNECT)
    await fixture.service.context.write(lambda txn: txn.drop(Attachment.bucket(), "data"))
    names = tuple(orphan.name for orphan in await find_orphans(fixture.service.context))
    fixture.launcher.gate.clear()
    removed = await fixture.service.submit(
        orphans.RemoveOrphans(names=names), caller=administrator("root")
    )
    release = hold_started_workers(fixture)
    waiting = notice_wait(fixture)
    up = asyncio.create_task(fixture.do(*UP))
    await soon(lambda: up.done() or waiting.is_set())
    release()
    await fixture.service.wait(removed.id, 10)
    await up
    assert {name.partition(":")[0] for name in client_facts(fixture)} == {"session", "mount"}


async def test_recovery_ignores_a_list_of_units_that_is_out_of_date(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(*PUBLISHED, CONNECT)
    heard: list[str] = []
    hint, fixture.launcher.hint = fixture.launcher.hint, heard.append
    fixture.launcher.report = None
    staged = await fixture.service.submit(UP[1], caller=administrator("x"))
    await soon(lambda: heard)
    assert fixture.service.operation(staged.id).state == "WAITING"
    await soon(lambda: not fixture.service.executor.is_held(staged.id))
    make, at_mkfs, go = fixture.host.block.make_filesystem, threading.Event(), threading.Event()
    refused: list[str] = []

    def slow(*words: Any) -> None:
        at_mkfs.set()
        go.wait(10)
        make(*words)

    async def late() -> set[str]:
        fixture.launcher.hint = hint
        hint(heard[0])
        await asyncio.to_thread(at_mkfs.wait, 10)
        return set()  # the units when the list was requested

    async def roll_back(operation: Operation) -> None:
        refused.append(operation.id)

    monkeypatch.setattr(fixture.host.block, "make_filesystem", slow)
    with monkeypatch.context() as patched:
        patched.setattr(fixture.launcher, "running", late)
        patched.setattr(fixture.launcher, "rollback", roll_back)
        await Supervisor(fixture.service, retention_s=1 << 30).recover()
    go.set()
    await fixture.service.wait(staged.id, 10)
    assert refused == []

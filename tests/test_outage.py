"""Outages: how long I/O waits for a lost session, and filesystems that failed meanwhile."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from tests.service_fixture import administrator
from tests.test_detach import CONNECT, UP, ways
from zfsilod.model.identity import DAEMON
from zfsilod.requests.attach import Stage
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Unpublish
from zfsilod.service.schedule import prepare_shutdown
from zfsilod.service.watch import HostWatch
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from typing import Any

    import pytest

    from tests.service_fixture import ServiceFixture

BOOT = (*UP[:2], CONNECT.but(restore="BOOT"), *UP[3:])


def session(fixture: ServiceFixture) -> tuple[str, dict[str, Any]]:
    """Return the name of the only session in the facts, and the session."""
    ((name, fact),) = (
        (name, fact) for name, fact in fixture.host.facts.memory.items() if name[:8] == "session:"
    )
    return name, fact


def configure(fixture: ServiceFixture, lost_session_s: int) -> None:
    """Set client.lost_session_s, as a restart of the daemon does."""
    context = fixture.service.context
    context.settings = context.settings.but(lost_session_s=lost_session_s)


async def test_io_waits_as_long_as_the_configuration_says(fixture: ServiceFixture) -> None:
    configure(fixture, 600)
    await fixture.do(*BOOT)
    assert session(fixture)[1]["wait"] == 600
    configure(fixture, 0)
    report = await fixture.service.reconciler.sync_all(DAEMON)
    assert not report.complaints
    name, fact = session(fixture)
    assert "wait" not in fact, "the standing session keeps the former time"
    assert "wait" not in fixture.host.facts.memory[name.replace("session:", "node:")]
    await fixture.do(UnmountFrom(id="data"), Unstage(id="data"), Disconnect(id="data"))


async def test_a_disconnect_ends_the_waiting_before_the_logout(fixture: ServiceFixture) -> None:
    await fixture.do(*UP[:3])
    done = await fixture.do(Disconnect(id="data"))
    assert ways(done)[-3:] == ["undo LossWait", "undo Session", "undo Node"]


# Filesystems that failed


def fail_filesystem(fixture: ServiceFixture, users: str = "") -> None:
    """Let the kernel give up the filesystem, which `users` use."""
    fixture.host.facts.memory[f"failed:{session(fixture)[1]['serial']}"] = users


def lines(fixture: ServiceFixture) -> list[str]:
    """Take the lines for the journal about volume data, which must all name it."""
    written: list[str] = []

    def write(sentence: str, fields: dict[str, str]) -> None:
        if "ZFSILO_AUDIT" not in fields:
            assert fields["ZFSILO_VOLUME"] == "data"
            written.append(sentence)

    fixture.service.audit.write = write
    return written


async def conditions(fixture: ServiceFixture) -> tuple[str, ...]:
    """Return the conditions of the volume, as every interface shows them."""
    with fixture.service.context.read() as txn:
        return volume_view(txn, "data").conditions


async def test_a_failed_filesystem_is_mounted_again(fixture: ServiceFixture) -> None:
    await fixture.do(*BOOT)
    fail_filesystem(fixture)
    report = await fixture.service.reconciler.sync_all(DAEMON)
    assert not report.complaints
    assert "failed" not in {name.partition(":")[0] for name in fixture.facts}
    assert "mount:/srv/data" in fixture.facts
    assert not await conditions(fixture)


async def test_a_failed_filesystem_in_use_stays_and_is_said(fixture: ServiceFixture) -> None:
    await fixture.do(*BOOT)
    fail_filesystem(fixture, "postgres (77)")
    before = fixture.facts
    report = await fixture.service.reconciler.sync_all(DAEMON)
    assert report.unfinished, "it is not tried again soon"
    assert fixture.facts == before
    (sentence,) = await conditions(fixture)
    assert "in use by postgres (77)" in sentence


async def test_a_failed_filesystem_is_left_to_its_owner(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)  # restore NEVER, as a CSI plugin does
    fail_filesystem(fixture)
    before = fixture.facts
    report = await fixture.service.reconciler.sync_all(DAEMON)
    assert [one.reason for drift in report.reports for one in drift.problems] == [
        "FILESYSTEM_FAILS"
    ]
    assert fixture.facts == before
    (sentence,) = await conditions(fixture)
    assert "failed: detach the volume and attach it again" in sentence
    await fixture.do(Stage(id="data"))  # its owner asks for it again: "already so" would be a lie
    assert "failed" not in {name.partition(":")[0] for name in fixture.facts}


async def test_a_filesystem_is_not_touched_while_the_session_is_lost(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*BOOT)
    fail_filesystem(fixture)
    name, fact = session(fixture)
    fixture.host.facts.memory[name] = fact | {"lost": True}
    report = await fixture.service.reconciler.sync_all(DAEMON)
    assert [sentence for _name, sentence in report.complaints] == [
        f"the session with {name.partition(':')[2]} was lost and is being recovered"
    ]
    assert len(await conditions(fixture)) == 1, "one cause has several sentences"


# What is noticed when it happens


async def test_a_mount_that_vanishes_is_mounted_again_at_once(fixture: ServiceFixture) -> None:
    await fixture.do(*BOOT)
    watch, written = HostWatch(fixture.service), lines(fixture)
    await watch.look()
    del fixture.host.facts.memory["mount:/srv/data"]
    await watch.look()
    assert "mount:/srv/data" in fixture.facts
    await watch.look()
    assert written == [
        "data: nothing is mounted at /srv/data",
        "data: mounted, and its filesystem works again",
    ]


async def test_a_lost_session_and_its_return_are_said_once(fixture: ServiceFixture) -> None:
    await fixture.do(*BOOT)
    watch, written = HostWatch(fixture.service), lines(fixture)
    await watch.look()
    name, fact = session(fixture)
    fixture.host.facts.memory[name] = fact | {"lost": True}
    for _look in range(3):
        await watch.look()
    assert await conditions(fixture)
    shown = await fixture.service.stats.broken_sessions()
    configure(fixture, 300)
    assert "UTC, then fails" in (await fixture.service.stats.broken_sessions())["data"]
    configure(fixture, 0)
    fixture.host.facts.memory[name] = fact
    fail_filesystem(fixture)
    for _look in range(3):
        await watch.look()
    assert not await conditions(fixture)
    assert "failed" not in {name.partition(":")[0] for name in fixture.facts}
    lost, back = (line for line in written if "filesystem" not in line)
    assert re.fullmatch(
        r"data: the session with give at \S+:3260 is lost since \d\d:\d\d:\d\d UTC; "
        "I/O waits until it is back",
        lost,
    )
    assert lost == f"data: {shown['data']}", "the same words and the same time everywhere"
    assert back == "data: the session with give is back"


async def test_a_lost_path_is_said_and_leaves_the_session_alone(fixture: ServiceFixture) -> None:
    await fixture.do(*BOOT)
    watch, written = HostWatch(fixture.service), lines(fixture)
    await watch.look()
    name, fact = session(fixture)
    fixture.host.facts.memory[name] = fact | {"lost_paths": ["10.88.0.1:3260"]}
    before = fixture.facts
    for _look in range(3):
        await watch.look()
    shown = await fixture.service.stats.broken_sessions()
    sentence = "the session with give has lost its path at 10.88.0.1:3260; I/O uses the others"
    assert shown["data"] == sentence
    with fixture.service.context.read() as txn:
        stats = await fixture.service.stats.sample(volume_view(txn, "data"))
    assert [problem.reason for problem in stats.problems] == ["PATH_LOST"]
    fixture.host.facts.memory[name] = fact
    await watch.look()
    assert written == [f"data: {shown['data']}", "data: the session with give is back"]
    assert fixture.facts == before | {name: fact}


async def test_a_session_that_was_lost_before_the_daemon_looked(fixture: ServiceFixture) -> None:
    await fixture.do(*BOOT)
    name, fact = session(fixture)
    fixture.host.facts.memory[name] = fact | {"lost": True}
    sentence = (await fixture.service.stats.broken_sessions())["data"]
    assert sentence.endswith(":3260 is lost; I/O waits until it is back"), "nobody knows since when"
    del fixture.host.facts.memory[name]
    sentence = (await fixture.service.stats.broken_sessions())["data"]
    assert sentence.startswith("there is no session with give at ")


async def test_an_operation_is_not_a_change_that_is_said(fixture: ServiceFixture) -> None:
    await fixture.do(*BOOT)
    watch, written = HostWatch(fixture.service), lines(fixture)
    await watch.look()
    fixture.launcher.gate.clear()
    operation = await fixture.service.submit(
        UnmountFrom(id="data"), caller=administrator("uid 0 (unix)")
    )
    del fixture.host.facts.memory["mount:/srv/data"]
    await watch.look()
    fixture.launcher.gate.set()
    await fixture.service.wait(operation.id, 20)
    await watch.look()
    assert written == []


async def test_a_fence_ends_the_waiting_of_its_client(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfsilod.service.watch.ASK_S", 0.0)
    await fixture.do(*BOOT)
    watch = HostWatch(fixture.service)
    await watch.look()
    name, fact = session(fixture)
    fixture.host.facts.memory[name] = fact | {"lost": True}
    fixture.server.away = True
    await watch.look()
    await settled(fixture)
    assert name in fixture.facts, "an unreachable server fences nobody"
    fixture.server.away = False
    await fixture.do(Unpublish(volume="data", host="take", fence=True, grace_s=0))
    fixture.host.facts.memory[name] = fact | {"lost": True}
    await watch.look()
    await settled(fixture)
    assert name not in fixture.facts


async def settled(fixture: ServiceFixture) -> None:
    """Wait for the operations that the watch has submitted."""
    for _turn in range(100):
        await asyncio.sleep(0.02)
        with fixture.service.context.read() as txn:
            if not fixture.service.executor.is_busy and not list(txn.live()):
                return
    raise AssertionError("an operation does not end")


# Shutdown of the client


async def is_stopping() -> bool:
    return True


async def is_running() -> bool:
    return False


async def test_a_shutdown_ends_the_waiting_for_a_lost_session(fixture: ServiceFixture) -> None:
    await fixture.do(*BOOT)
    name, fact = session(fixture)
    await prepare_shutdown(fixture.service, is_stopping)
    assert session(fixture)[1]["wait"] == 5, "the session may be lost later"
    fixture.host.facts.memory[name] = fact | {"lost": True}
    await prepare_shutdown(fixture.service, is_running)
    assert session(fixture)[0] == name, "a restart of the daemon drops nothing"
    await prepare_shutdown(fixture.service, is_stopping)
    assert name not in fixture.host.facts.memory
    with fixture.service.context.read() as txn:
        attachment = volume_view(txn, "data").attachment
    assert attachment is not None
    assert (attachment.state, attachment.restore) == ("MOUNTED", "BOOT")

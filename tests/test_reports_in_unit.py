"""Reports to a server from within the unit of a worker: one unit, and the ways out of it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import administrator
from zfsilod.engine.report_wait import SOCKET, ask_daemon
from zfsilod.engine.worker import Worker
from zfsilod.model.errors import Busy, Unavailable
from zfsilod.model.records import Attachment, Operation
from zfsilod.requests.attach import Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service import report_socket
from zfsilod.service.report_socket import ReportSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.service_fixture import ServiceFixture

CONNECTED = (
    CreateVolume(id="data", capacity_bytes=1 << 30),
    Publish(volume="data", host="take"),
    Connect(id="data", server="give", volume="data"),
)
STAGE = Stage(id="data")
WORKER_S = 10


def units_of(fixture: ServiceFixture, operation: Operation) -> int:
    return fixture.launcher.starts.count(operation.unit)


def staged(fixture: ServiceFixture) -> bool:
    with fixture.service.context.store.read() as txn:
        attachment = txn.get(Attachment, "data")
    return attachment is not None and attachment.state == "STAGED"


class Reports:
    """The reports of a fixture, which a test may hold up."""

    def __init__(self, fixture: ServiceFixture) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.count = 0
        self._report = fixture.server.report
        fixture.server.report = self  # type: ignore[method-assign, assignment]

    async def __call__(self, *words: Any) -> None:
        self.count += 1
        self.begun.set()
        await self.go.wait()
        await self._report(*words)


@pytest.fixture
async def reports(fixture: ServiceFixture) -> AsyncIterator[Reports]:
    """Reports that are held up, for a volume that is connected."""
    await fixture.do(*CONNECTED)
    reports = Reports(fixture)
    yield reports
    reports.go.set()


async def submitted(fixture: ServiceFixture) -> Operation:
    return await fixture.service.submit(STAGE, caller=administrator("x"))


async def test_the_first_stage_is_one_unit(fixture: ServiceFixture) -> None:
    await fixture.do(*CONNECTED)
    operation = await fixture.do(STAGE)
    assert [action.status for action in operation.actions if not hasattr(action.step, "part")] == [
        "DONE",
        "DONE",
    ]
    assert units_of(fixture, operation) == 1


async def test_without_an_answer_another_unit_goes_on(fixture: ServiceFixture) -> None:
    await fixture.do(*CONNECTED)
    fixture.launcher.report = None
    operation = await fixture.do(STAGE)
    assert units_of(fixture, operation) == 3
    assert staged(fixture)


async def test_a_report_that_fails_is_the_failure_of_the_operation(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*CONNECTED)
    before = fixture.facts
    fixture.server.away = True
    with pytest.raises(Unavailable, match="give does not answer"):
        await fixture.do(STAGE)
    assert fixture.facts == before


async def test_a_worker_that_gives_up_voids_the_report(
    fixture: ServiceFixture, reports: Reports
) -> None:
    """Its operation waits, and the daemon resumes it; the late outcome is not stored."""
    answer = fixture.launcher.report
    late: list[asyncio.Task[None]] = []

    async def give_up(operation_id: str) -> None:
        assert answer is not None
        late.append(asyncio.ensure_future(answer(operation_id)))
        await reports.begun.wait()
        fixture.launcher.report = answer

    fixture.launcher.report = give_up
    operation = await submitted(fixture)
    await reports.begun.wait()
    await asyncio.gather(*fixture.launcher.tasks.values())
    assert fixture.service.operation(operation.id).state == "WAITING"
    reports.go.set()
    done = await fixture.service.wait(operation.id, WORKER_S)
    assert staged(fixture)
    assert units_of(fixture, done) == 2
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert reports.count == 3
    assert {type(outcome) for outcome in outcomes} <= {Busy, type(None)}


async def test_a_worker_that_is_stopped_while_it_waits_is_rolled_back(
    fixture: ServiceFixture, reports: Reports
) -> None:
    before = fixture.facts
    operation = await submitted(fixture)
    await reports.begun.wait()
    with fixture.service.context.store.read() as txn:
        waiting = txn.get(Operation, operation.id)
    assert waiting is not None
    assert (waiting.state, waiting.at_server) == ("RUNNING", True)
    worker = Worker(fixture.launcher.store, fixture.host, operation.id)
    await asyncio.to_thread(worker.rollback)
    reports.go.set()
    await asyncio.gather(*fixture.launcher.tasks.values(), return_exceptions=True)
    ended = fixture.service.operation(operation.id)
    assert ended.state == "ROLLED_BACK"
    assert {name for name in fixture.facts if not name.startswith("zvol:")} == {
        name for name in before if not name.startswith("zvol:")
    }


async def test_a_rollback_reads_the_outcome_that_was_stored_before_it(
    fixture: ServiceFixture, reports: Reports
) -> None:
    """The rollback reads the operation again before it changes anything."""
    operation = await submitted(fixture)
    await reports.begun.wait()
    worker = Worker(fixture.launcher.store, fixture.host, operation.id)  # has read it before
    reports.go.set()
    await fixture.service.wait(operation.id, WORKER_S)
    await asyncio.to_thread(worker.rollback)
    assert fixture.service.operation(operation.id).state == "DONE"
    assert staged(fixture)


async def test_cancelling_stops_the_worker_that_waits(
    fixture: ServiceFixture, reports: Reports
) -> None:
    operation = await submitted(fixture)
    await reports.begun.wait()
    await fixture.service.cancel(operation.id)
    with pytest.raises(Busy, match="cancelled"):
        await fixture.service.wait(operation.id, WORKER_S)
    assert not staged(fixture)


# The socket


@pytest.fixture
async def listening(fixture: ServiceFixture, tmp_path: Path) -> AsyncIterator[Path]:
    """The folder of a socket that answers by the executor of the fixture."""
    answering = ReportSocket(fixture.service.executor)
    await answering.open(tmp_path / "op")
    yield tmp_path / "op"
    await answering.close()
    assert not (tmp_path / "op" / SOCKET).exists()


async def test_a_report_by_the_socket(fixture: ServiceFixture, listening: Path) -> None:
    await fixture.do(*CONNECTED)

    def ask(operation_id: str) -> None:
        ask_daemon(os.fspath(listening), operation_id)

    fixture.launcher.ask = ask  # type: ignore[method-assign]
    operation = await fixture.do(STAGE)
    assert units_of(fixture, operation) == 1
    assert staged(fixture)


async def test_only_this_user_opens_the_socket(listening: Path) -> None:
    assert listening.stat().st_mode & 0o777 == 0o700
    assert (listening / SOCKET).stat().st_mode & 0o777 == 0o600


async def test_another_user_gets_no_answer(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfsilod.service.report_socket.os.geteuid", lambda: 12345)
    assert await asyncio.to_thread(said, listening, b"0" * 26) == b""


@pytest.mark.parametrize("message", [b"", b"short", b"\xff" * 26, b"0" * 26, b"x" * 100_000])
async def test_what_is_no_waiting_operation_gets_an_end(
    listening: Path, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_socket, "ID_DEADLINE_S", 0.2)
    assert await asyncio.to_thread(said, listening, message) == b""


async def test_places_are_few(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_socket, "AT_ONCE", 1)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(os.fspath(listening / SOCKET))
        assert await asyncio.to_thread(said, listening, b"") == b""


def said(folder: Path, message: bytes) -> bytes:
    """Write to the socket, and return what it answers until it closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WORKER_S)
        client.connect(os.fspath(folder / SOCKET))
        try:
            client.sendall(message)
            return client.recv(1)
        except (ConnectionResetError, BrokenPipeError):
            return b""


def test_no_daemon_is_no_answer(tmp_path: Path) -> None:
    ask_daemon(os.fspath(tmp_path), "0" * 26)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(tmp_path / SOCKET))
    ask_daemon(os.fspath(tmp_path), "0" * 26)


def test_a_daemon_that_is_stopped_or_silent_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfsilod.engine.report_wait.WAIT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(os.fspath(tmp_path / SOCKET))
        silent.listen()
        ask_daemon(os.fspath(tmp_path), "0" * 26)
        closing = threading.Thread(target=lambda: silent.accept()[0].close())
        closing.start()
        ask_daemon(os.fspath(tmp_path), "0" * 26)
        closing.join()

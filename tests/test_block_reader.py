"""Readers of blocks: the real process over a simulated host, its unit, and what they may read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.examples import UID
from tests.test_launcher import Bus
from zfsilod.engine.block_reader import BlockQuery
from zfsilod.engine.limits import WorkerLimits
from zfsilod.engine.worker import BLOCKS_WORDS
from zfsilod.host.fake import FakeHost
from zfsilod.model.errors import PermissionDenied, ResourceExhausted, Unavailable, ZfsiloError
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.service import block_reader
from zfsilod.service.block_reader import BlockReader
from zfsilod.storage.store import Store
from zfsilod.systemd.launcher import LocalLauncher, SystemdLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from zfsilod.model.host_facts import BlockRange

BLOCK, SET_UID = 16384, "c" * 32
ZVOL = SnapshotRef(dataset="tank/zfsilo/data", uid=UID)
QUERY = BlockQuery(dataset=ZVOL.dataset, volume_uid=UID, uid=SET_UID)
TICKET = "01jzzzzzzzzzzzzzzzzzzzzzzz"


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[BlockReader]:
    """Readers over the store and the facts of a simulation, with a snapshot of 3000 ranges."""
    Store.create(tmp_path, host="simulated", size_bytes=1 << 24, durable=False).close()
    host = FakeHost(tmp_path / "facts.json", chap=lambda _name: cast("Any", None))
    host.zfs.create_zvol(
        ZVOL.dataset,
        size_bytes=1 << 30,
        thin=True,
        volblocksize=BLOCK,
        properties=(),
        marks=(("zfsilo:uid", UID),),
    )
    host.facts.effect(f"blocks:{UID}", {str(number): "x" for number in range(0, 6000, 2)})
    host.snapshots.take((ZVOL,), SET_UID, ())
    readers = BlockReader(LocalLauncher(tmp_path))
    await readers.open(tmp_path / "op")
    yield readers
    await readers.close()


async def all_of(reader: BlockReader, query: BlockQuery) -> list[BlockRange]:
    return [one async for ranges in reader.read(query, "blocks of s") for one in ranges]


async def test_a_process_sends_what_it_reads(reader: BlockReader) -> None:
    expected = [(number * BLOCK, BLOCK, False) for number in range(0, 6000, 2)]
    assert await all_of(reader, QUERY) == expected
    assert await all_of(reader, QUERY.but(start=5996 * BLOCK)) == expected[-2:]


async def test_the_error_of_a_process_is_that_of_its_reader(reader: BlockReader) -> None:
    for query, reason in (
        (QUERY.but(uid="e" * 32), "LOST"),
        (QUERY.but(base_uid=SET_UID), "BAD_BASE"),
        (QUERY.but(guid="4711"), "CONFLICT"),
    ):
        with pytest.raises(ZfsiloError) as failed:
            await all_of(reader, query)
        assert failed.value.reason == reason


async def test_a_process_that_does_not_come(
    reader: BlockReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_reader, "START_S", 0.1)

    async def start(*_words: object) -> None:
        """Start nothing."""

    monkeypatch.setattr(LocalLauncher, "start_reader", start)
    with pytest.raises(Unavailable, match="did not start") as failed:
        await all_of(reader, QUERY)
    assert failed.value.reason == "STOPPED"


async def test_a_caller_that_waits_loses_its_turn(
    reader: BlockReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_reader, "AT_ONCE", 1)
    monkeypatch.setattr(reader, "_turns", asyncio.Semaphore(1))
    monkeypatch.setattr(block_reader, "TURN_S", 0.05)
    slow = reader.read(QUERY, "blocks of s")
    await anext(slow)
    with pytest.raises(ResourceExhausted, match="1 other calls") as refused:
        await all_of(reader, QUERY)
    assert refused.value.reason == "TOO_MANY_CALLS"
    monkeypatch.setattr(block_reader, "TURN_S", 30.0)
    monkeypatch.setattr(block_reader, "TAKE_S", 0.05)
    await anext(slow)  # it has TAKE_S from now on
    assert len(await all_of(reader, QUERY)) == 3000
    with pytest.raises(Unavailable, match="the caller took nothing for 0 s"):
        await anext(slow)
    assert len(await all_of(reader, QUERY)) == 3000, "a turn ends once"


async def test_a_stranger_has_no_ticket(reader: BlockReader, tmp_path: Path) -> None:
    for ticket in (TICKET.encode(), b"short"):
        strange, writer = await asyncio.open_unix_connection(tmp_path / "op/blocks.sock")
        writer.write(ticket)
        writer.write_eof()
        assert await strange.read() == b""
        writer.close()
    assert (await all_of(reader, QUERY))[0] == (0, BLOCK, False)


def test_the_arguments_of_a_process() -> None:
    query = QUERY.but(guid="7", base_uid="b" * 32, start=1 << 60)
    for one in (QUERY, query):
        assert BlockQuery.parsed(list(one.words)) == one
        assert len(one.words) + 1 == BLOCKS_WORDS


@pytest.mark.parametrize("dataset", ["tank/other", "tank/zfsilo", "tank/zfsilo/../x", "-r"])
def test_a_process_reads_volumes_only(dataset: str) -> None:
    limits = WorkerLimits(root="tank/zfsilo", prefix="", portals=(), folders=())
    limits.check_dataset("tank/zfsilo/data")
    with pytest.raises(PermissionDenied) as failed:
        limits.check_dataset(dataset)
    assert failed.value.reason == "OUTSIDE_LIMITS"


async def test_the_unit_of_a_reader() -> None:
    bus = Bus([])
    launcher = SystemdLauncher(cast("Any", bus), worker="/worker", timeout_s=60)
    await launcher.start_reader(TICKET, QUERY.words, "blocks of snapshot s")
    await launcher.stop_reader(TICKET)
    start, stop = bus.sent
    name = f"zfsilo-blocks-{TICKET}.service"
    assert (start.member, start.body[0]) == ("StartTransientUnit", name)
    assert (stop.member, stop.body[0]) == ("StopUnit", name)
    unit = {one: variant.value for one, variant in start.body[2]}
    assert unit["ExecStart"] == [["/worker", ["/worker", "blocks", TICKET, *QUERY.words], False]]
    assert unit["BindsTo"] == ["zfsilod.service"], "it ends with the daemon"
    assert unit["RuntimeMaxUSec"] == 7 * 24 * 3600 * 1_000_000
    assert unit["MemoryMax"] == 256 << 20
    assert unit["ProtectSystem"] == "strict"
    assert unit["CapabilityBoundingSet"] & 1 << 21, "CAP_SYS_ADMIN, for zfs send"

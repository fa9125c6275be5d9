"""SnapshotService.ReadSnapshotBlocks: ranges, messages, errors, and callers that go away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zfsilo.v1 import snapshot_pb2 as pb
from zfsilo.v1 import volume_pb2

from tests.api.running import DATA, GIB, create, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tests.api.running import Front
    from zfsilod.model.host_facts import BlockRange

BLOCK = 16384


def write(front: Front, blocks: dict[str, str], volume: str = "data") -> None:
    """Set the blocks of a zvol that are in use."""
    facts = front.fixture.host.facts
    uid = facts.get(f"zvol:tank/zfsilo/{volume}")["uid"]
    facts.effect(f"blocks:{uid}", blocks)


async def take(front: Front, name: str, volume: str = DATA) -> str:
    """Take a snapshot, and return its name."""
    request = pb.CreateSnapshotRequest(snapshot_id=name, volume=volume)
    return str((await front.root().snapshots.CreateSnapshot(request)).snapshot.name)


async def read(front: Front, name: str, **fields: Any) -> list[pb.ReadSnapshotBlocksResponse]:
    request = pb.ReadSnapshotBlocksRequest(name=name, **fields)
    return [message async for message in front.root().snapshots.ReadSnapshotBlocks(request)]


def ranges(messages: list[pb.ReadSnapshotBlocksResponse]) -> list[tuple[int, int, bool]]:
    """Return the ranges, in blocks."""
    return [
        (one.offset // BLOCK, one.length // BLOCK, one.zero)
        for message in messages
        for one in message.ranges
    ]


async def test_blocks_in_use(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    write(front, {"7": "a", "1": "b", "2": "c", "900": "d"})
    messages = await read(front, await take(front, "s"))
    assert {message.size_bytes for message in messages} == {GIB}
    assert ranges(messages) == [(1, 2, False), (7, 1, False), (900, 1, False)]
    assert front.fixture.launcher.titles == ["blocks of snapshot s"]


async def test_changed_blocks(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    write(front, {"1": "a", "2": "b", "3": "c", "8": "d"})
    before = await take(front, "before")
    write(front, {"1": "a", "2": "new", "9": "more"})
    after = await take(front, "after")
    changed = [(2, 1, False), (3, 1, True), (8, 1, True), (9, 1, False)]
    assert ranges(await read(front, after, base=before)) == changed
    assert front.fixture.launcher.titles == ["blocks of snapshot after since before"]


async def test_a_snapshot_without_blocks_has_a_size(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    messages = await read(front, await take(front, "s"))
    assert [(message.size_bytes, len(message.ranges)) for message in messages] == [(GIB, 0)]


async def test_a_call_continues_at_an_offset(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    write(front, {"1": "a", "2": "b", "5": "c"})
    name = await take(front, "s")
    assert ranges(await read(front, name, start_offset=2 * BLOCK)) == [(2, 1, False), (5, 1, False)]
    inside = (await read(front, name, start_offset=2 * BLOCK + 100))[1].ranges[0]
    assert (inside.offset, inside.length) == (2 * BLOCK + 100, BLOCK - 100)
    assert ranges(await read(front, name, start_offset=GIB)) == []


async def test_messages_are_as_small_as_asked_for(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    write(front, {str(number): "x" for number in range(0, 5000, 2)})
    name = await take(front, "s")
    messages = await read(front, name, max_ranges=7)
    assert max(len(message.ranges) for message in messages) == 7
    assert ranges(messages) == [(number, 1, False) for number in range(0, 5000, 2)]
    with refused("INVALID_ARGUMENT", "BAD_PAGE_SIZE"):
        await read(front, name, max_ranges=-1)


@pytest.mark.parametrize("offset", [-1, GIB + 1])
async def test_an_offset_outside_is_refused(front: Front, offset: int) -> None:
    await front.root().volumes.CreateVolume(create())
    name = await take(front, "s")
    with refused("INVALID_ARGUMENT", "BAD_OFFSET"):
        await read(front, name, start_offset=offset)


async def test_a_base_is_an_older_snapshot_of_the_volume(front: Front) -> None:
    for name in ("data", "other"):
        await front.root().volumes.CreateVolume(create(name))
    old, new = await take(front, "old"), await take(front, "new")
    other = await take(front, "other", "volumes/other")
    for name, base in ((old, new), (old, old), (new, other)):
        with refused("INVALID_ARGUMENT", "BAD_BASE"):
            await read(front, name, base=base)
    for name, base in (("snapshots/none", ""), (new, "snapshots/none")):
        with refused("NOT_FOUND"):
            await read(front, name, base=base)


async def test_a_snapshot_of_a_deleted_volume(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    write(front, {"4": "a"})
    name = await take(front, "s")
    await front.root().volumes.DeleteVolume(
        volume_pb2.DeleteVolumeRequest(name=DATA, dependents=volume_pb2.DEPENDENTS_KEEP)
    )
    assert ranges(await read(front, name)) == [(4, 1, False)]


async def test_a_snapshot_that_zfs_has_lost(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    name = await take(front, "s")
    facts = front.fixture.host.facts
    for uid in facts.of_kind("cut"):
        facts.effect(f"cut:{uid}", None)
    with refused("FAILED_PRECONDITION", "LOST"):
        await read(front, name)


async def test_a_reader_that_is_stopped_is_no_end(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    await front.root().volumes.CreateVolume(create())
    name = await take(front, "s")

    def killed(*_query: object, **_named: object) -> Iterator[BlockRange]:
        yield 0, BLOCK, False
        raise OSError

    monkeypatch.setattr(front.fixture.host.snapshots, "read_blocks", killed)
    with refused("UNAVAILABLE", "STOPPED"):
        await read(front, name)


async def test_a_reader_that_does_not_start(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    name = await take(front, "s")
    front.fixture.launcher.refuses = True
    with refused("UNAVAILABLE"):
        await read(front, name)


async def test_a_reader_ends_with_its_caller(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    write(front, {str(number): "x" for number in range(0, 60000, 2)})
    name = await take(front, "s")
    for _call in range(5):  # more than run at once
        call = front.root().snapshots.ReadSnapshotBlocks(pb.ReadSnapshotBlocksRequest(name=name))
        assert (await call.read()).size_bytes == GIB
        assert (await call.read()).ranges
        call.cancel()
    assert len(ranges(await read(front, name))) == 30000
    assert not front.fixture.launcher.readers

"""SnapshotService: the blocks of a snapshot that are in use, or differ from an older one."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import snapshot_pb2

from zfsilod.engine.block_reader import BlockQuery
from zfsilod.model.errors import InvalidArgument
from zfsilod.requests.clones import need_snapshot, snapshot_source
from zfsilod.wire import convert

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zfsilod.api.rpc.call import Call
    from zfsilod.model.host_facts import BlockRange
    from zfsilod.storage.transaction import Transaction

DEFAULT_RANGES, MAX_RANGES = 1000, 10_000  # of one message


class SnapshotBlockMethods:
    """The methods of zfsilo.v1.SnapshotService that read blocks."""

    async def ReadSnapshotBlocks(
        self, message: snapshot_pb2.ReadSnapshotBlocksRequest, call: Call
    ) -> AsyncIterator[snapshot_pb2.ReadSnapshotBlocksResponse]:
        if message.max_ranges < 0:
            raise InvalidArgument("max_ranges is negative", reason="BAD_PAGE_SIZE")
        most = min(message.max_ranges or DEFAULT_RANGES, MAX_RANGES)
        query, title, size_bytes = call.read(partial(_query, message))
        # The first message tells the size, whether or not a block is in use.
        yield snapshot_pb2.ReadSnapshotBlocksResponse(size_bytes=size_bytes)
        batches: Any = call.service.blocks.read(query, title)
        async with aclosing(batches):
            async for ranges in batches:
                for first in range(0, len(ranges), most):
                    yield _message(size_bytes, ranges[first : first + most])


def _query(
    message: snapshot_pb2.ReadSnapshotBlocksRequest, txn: Transaction
) -> tuple[BlockQuery, str, int]:
    """Return what to read, for people too, and the size of the snapshot in bytes."""
    snapshot_id = convert.snapshot_id(message.name)
    base_id = convert.snapshot_id(message.base) if message.base else ""
    origin = snapshot_source(txn, snapshot_id).origin
    if not 0 <= message.start_offset <= origin.size_bytes:
        raise InvalidArgument(
            f"start_offset {message.start_offset} is not in snapshot {snapshot_id}, which has "
            f"{origin.size_bytes} bytes",
            reason="BAD_OFFSET",
        )
    query = BlockQuery(
        dataset=origin.snapshot_ref.dataset,
        volume_uid=origin.snapshot_ref.uid,
        uid=origin.snapshot_uid,
        guid=origin.snapshot_ref.guid,
        start=message.start_offset,
    )
    if not base_id:
        return query, f"blocks of snapshot {snapshot_id}", origin.size_bytes
    base = need_snapshot(txn, base_id)
    if base.volume_uid != query.volume_uid:
        raise InvalidArgument(
            f"snapshots {base.id} and {snapshot_id} are of different volumes; the base has to be "
            "an older snapshot of the same volume",
            reason="BAD_BASE",
        )
    changed = query.but(base_uid=base.uid, base_guid=base.guid)
    return changed, f"blocks of snapshot {snapshot_id} since {base.id}", origin.size_bytes


def _message(size_bytes: int, ranges: list[BlockRange]) -> snapshot_pb2.ReadSnapshotBlocksResponse:
    return snapshot_pb2.ReadSnapshotBlocksResponse(
        size_bytes=size_bytes,
        ranges=[
            snapshot_pb2.BlockRange(offset=offset, length=length, zero=zero)
            for offset, length, zero in ranges
        ],
    )

"""csi.v1.SnapshotMetadata: the blocks of a snapshot that are in use, or that changed."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import snapshot_pb2 as pb

from zfsilo_csi import ids
from zfsilo_csi.errors import Code, CsiError, invalid, need

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from zfsilo_csi.backends import Backends
    from zfsilo_csi.calls import CsiCall


class SnapshotMetadataService:
    """The methods of csi.v1.SnapshotMetadata. Both are streams."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def GetMetadataAllocated(
        self, request: csi.GetMetadataAllocatedRequest, call: CsiCall
    ) -> AsyncIterator[csi.GetMetadataAllocatedResponse]:
        handle = ids.need_handle(request.snapshot_id, "snapshot")
        async with aclosing(self._read(request, handle, "", call)) as messages:
            async for message in messages:
                yield csi.GetMetadataAllocatedResponse(**_fields(message))

    async def GetMetadataDelta(
        self, request: csi.GetMetadataDeltaRequest, call: CsiCall
    ) -> AsyncIterator[csi.GetMetadataDeltaResponse]:
        need(request.base_snapshot_id, "base_snapshot_id")
        need(request.target_snapshot_id, "target_snapshot_id")
        base = ids.need_handle(request.base_snapshot_id, "snapshot")
        target = ids.need_handle(request.target_snapshot_id, "snapshot")
        if base.backend != target.backend:
            raise invalid(f"snapshots {base} and {target} are of volumes of different servers")
        async with aclosing(self._read(request, target, base.id, call)) as messages:
            async for message in messages:
                yield csi.GetMetadataDeltaResponse(**_fields(message))

    async def _read(
        self, request: Any, handle: ids.Handle, base: str, call: CsiCall
    ) -> AsyncGenerator[pb.ReadSnapshotBlocksResponse, None]:
        call.note(snapshot=str(handle), base=base)
        if request.max_results < 0:
            raise invalid(f"max_results {request.max_results} is negative; use 0 for no limit")
        if request.starting_offset < 0:
            raise CsiError(Code.OUT_OF_RANGE, "starting_offset is negative")
        daemon_request = pb.ReadSnapshotBlocksRequest(
            name=f"snapshots/{handle.id}",
            base=f"snapshots/{base}" if base else "",
            start_offset=request.starting_offset,
            max_ranges=request.max_results,
        )
        backend = self._backends.get(handle.backend)
        messages = backend.snapshots.ReadSnapshotBlocks(daemon_request, call)
        try:
            async with aclosing(messages):
                async for message in messages:
                    yield message
        except CsiError as error:
            if error.reason == "LOST":  # the pool does not have what the record tells of
                raise CsiError(Code.NOT_FOUND, error.message, reason=error.reason) from None
            raise


def _fields(message: pb.ReadSnapshotBlocksResponse) -> dict[str, Any]:
    """Return the fields that both responses have; what reads as zeros is a change as well."""
    return {
        "block_metadata_type": csi.VARIABLE_LENGTH,
        "volume_capacity_bytes": message.size_bytes,
        "block_metadata": [
            csi.BlockMetadata(byte_offset=one.offset, size_bytes=one.length)
            for one in message.ranges
        ],
    }

"""VolumeService: the keys of encrypted volumes."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from zfsilo.v1 import volume_pb2

from zfsilod.api.rpc.volumes import change_volume, need_view
from zfsilod.model.errors import Busy
from zfsilod.requests.volume_keys import RotateVolumeKey, check_carried, check_export
from zfsilod.requests.volumes import need_volume
from zfsilod.security.credentials import check_caller
from zfsilod.wire import convert

if TYPE_CHECKING:
    from zfsilod.api.rpc.call import Call
    from zfsilod.model.records import VolumeKey
    from zfsilod.storage.transaction import Transaction


class VolumeKeyMethods:
    """RotateVolumeKey, ExportVolumeKey."""

    async def RotateVolumeKey(
        self, message: volume_pb2.RotateVolumeKeyRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = RotateVolumeKey(id=convert.volume_id(message.name), etag=message.etag)
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def ExportVolumeKey(
        self, message: volume_pb2.ExportVolumeKeyRequest, call: Call
    ) -> volume_pb2.ExportVolumeKeyResponse:
        volume_id, context = convert.volume_id(message.name), call.service.context
        need_view(call, volume_id)
        volume, known = call.read(
            lambda txn: (need_volume(txn, volume_id), check_export(txn, volume_id))
        )
        dataset = volume.dataset
        await context.look(partial(check_carried, context.machine, volume, known))
        if message.validate_only:
            call.changed = False
            return volume_pb2.ExportVolumeKeyResponse(dataset=dataset)
        # The first decryption imports cryptography: not on the event loop.
        key = await asyncio.to_thread(context.store.disk_key, known.id, known.rotation)

        def record(txn: Transaction) -> VolumeKey:
            """Record the export of the key that was read; a second caller gets none."""
            check_caller(txn, call.caller)
            current = check_export(txn, volume_id)
            if current.rotation != known.rotation:
                raise Busy(f"the key of {volume_id} was replaced meanwhile", reason="CHANGED")
            return txn.put(current.but(exported_at=context.now()))

        await context.write(record)
        return volume_pb2.ExportVolumeKeyResponse(dataset=dataset, recovery_key=key.reveal().hex())

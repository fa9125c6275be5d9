"""A client of the plugin: the calls that Kubernetes makes, and expectations about errors."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from csi.v1 import csi_pb2 as csi

from zfsilod.model.records import Host
from zfsilod.wire.stub import Stub

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.api.running import Front

GIB = 1 << 30
NODE = "take"
POD = "pod-a"
STAGING = f"staging-{POD}"
STAGE_S = 180.0  # in emulation
RETRIED = ("UNAVAILABLE", "CANCELLED", "ABORTED")
Mode = csi.VolumeCapability.AccessMode


class PluginClient:
    """The plugin's services, with short methods for the calls of a volume's lifecycle.

    `directory` stands for kubelet's folder: paths of pods and staging paths are below it.
    """

    def __init__(self, directory: Path, channel: Any, node: Any = None) -> None:
        self.directory = directory
        services = csi.DESCRIPTOR.services_by_name
        self.identity = Stub(channel, services["Identity"])
        self.controller = Stub(channel, services["Controller"])
        self.group = Stub(channel, services["GroupController"])
        self.metadata = Stub(channel, services["SnapshotMetadata"])
        self.node = Stub(node or channel, services["Node"])

    async def create(self, name: str = "pvc-1", **fields: Any) -> csi.Volume:
        defaults: dict[str, Any] = {
            "volume_capabilities": [mount()],
            "capacity_range": csi.CapacityRange(required_bytes=GIB),
        }
        request = csi.CreateVolumeRequest(name=name, **(defaults | fields))
        response: csi.CreateVolumeResponse = await self.controller.CreateVolume(request)
        return response.volume

    async def publish(self, volume_id: str, node: str = NODE, **fields: Any) -> dict[str, str]:
        fields = {"volume_capability": mount()} | fields
        response = await self.controller.ControllerPublishVolume(
            csi.ControllerPublishVolumeRequest(volume_id=volume_id, node_id=node, **fields)
        )
        return dict(response.publish_context)

    async def unpublish(self, volume_id: str, node: str = NODE) -> None:
        await self.controller.ControllerUnpublishVolume(
            csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node)
        )

    async def delete(self, volume_id: str) -> None:
        await self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume_id))

    async def get(self, volume_id: str) -> csi.ControllerGetVolumeResponse:
        request = csi.ControllerGetVolumeRequest(volume_id=volume_id)
        response: csi.ControllerGetVolumeResponse = await self.controller.ControllerGetVolume(
            request
        )
        return response

    async def stage(
        self, volume_id: str, context: dict[str, str], capability: Any = None, at: str = STAGING
    ) -> None:
        await self.node.NodeStageVolume(
            csi.NodeStageVolumeRequest(
                volume_id=volume_id,
                publish_context=context,
                staging_target_path=self.path(at),
                volume_capability=capability or mount(),
            )
        )

    async def unstage(self, volume_id: str, at: str = STAGING) -> None:
        await self.node.NodeUnstageVolume(
            csi.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=self.path(at))
        )

    async def mount(
        self,
        volume_id: str,
        path: str = POD,
        capability: Any = None,
        at: str = STAGING,
        **fields: Any,
    ) -> None:
        await self.node.NodePublishVolume(
            csi.NodePublishVolumeRequest(
                volume_id=volume_id,
                staging_target_path=self.path(at),
                target_path=self.path(path),
                volume_capability=capability or mount(),
                **fields,
            )
        )

    async def unmount(self, volume_id: str, path: str = POD) -> None:
        await self.node.NodeUnpublishVolume(
            csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=self.path(path))
        )

    async def stats(self, volume_id: str, path: str = POD) -> csi.NodeGetVolumeStatsResponse:
        request = csi.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=self.path(path))
        response: csi.NodeGetVolumeStatsResponse = await self.node.NodeGetVolumeStats(request)
        return response

    def path(self, name: str) -> str:
        return str(self.directory / name)


async def up(plugin: PluginClient, volume_id: str, pod: str = POD, capability: Any = None) -> str:
    """Publish, stage and mount a volume for a pod, and return its path there."""
    context = await plugin.publish(volume_id, volume_capability=capability or mount())
    # The first one makes the filesystem too, maybe beyond the deadline of one call.
    await until_done(
        lambda: plugin.stage(volume_id, context, capability, f"staging-{pod}"), STAGE_S
    )
    await plugin.mount(volume_id, pod, capability, f"staging-{pod}")
    return plugin.path(pod)


async def take_away(plugin: PluginClient, volume_id: str, pod: str = POD) -> None:
    """Unmount, unstage and unpublish a volume, as Kubernetes does when a pod is deleted."""
    await plugin.unmount(volume_id, pod)
    await plugin.unstage(volume_id, f"staging-{pod}")
    await plugin.unpublish(volume_id)


async def down(plugin: PluginClient, volume_id: str, pod: str = POD) -> None:
    """Take a volume away from a pod and delete it."""
    await take_away(plugin, volume_id, pod)
    await plugin.delete(volume_id)


def mount(mode: str = "SINGLE_NODE_WRITER", **fields: Any) -> csi.VolumeCapability:
    """Return the capability of a filesystem volume."""
    return csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(**fields),
        access_mode=Mode(mode=mode),
    )


def block(mode: str = "SINGLE_NODE_WRITER") -> csi.VolumeCapability:
    """Return the capability of a raw block volume."""
    return csi.VolumeCapability(
        block=csi.VolumeCapability.BlockVolume(),
        access_mode=Mode(mode=mode),
    )


async def until_done(call: Callable[[], Awaitable[object]], within_s: float = 10) -> object:
    """Repeat a call while it fails with a code that the sidecars retry."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code().name not in RETRIED or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)  # the sidecars wait longer


async def until_known(front: Front) -> None:
    """Wait until a server has a record of the node."""
    async with asyncio.timeout(10):
        while front.read(lambda txn: txn.get(Host, NODE)) is None:
            await asyncio.sleep(0.02)  # nothing announces a host


@contextmanager
def fails(code: str, text: str = "") -> Iterator[None]:
    """Expect a call to fail with a code, a text in its message, and no status details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    details = caught.value.details() or ""
    assert caught.value.code().name == code, details
    assert text in details
    metadata = caught.value.trailing_metadata() or ()
    assert not [key for key, _value in metadata if "details" in key]

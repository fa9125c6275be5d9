"""The plugin in front of one or two zfsilod, all in this process: real sockets, real roles."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from csi.v1 import csi_pb2 as csi
from prometheus_client import generate_latest
from zfsilo_csi.__main__ import compose
from zfsilo_csi.config import BackendConfig, Config, NodeConfig
from zfsilo_csi.metrics import Metrics
from zfsilo_csi.server import Server

from tests.api.running import Front, front_of
from tests.doubles import SETTINGS
from zfsilod.security.join_file import make_join
from zfsilod.wire.storage_server import Servers
from zfsilod.wire.stub import Stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

GIB = 1 << 30
NODE = "take"
STAGING = "staging"
GONE = ("UNAVAILABLE", "CANCELLED", "ABORTED")
Mode = csi.VolumeCapability.AccessMode


class Plugin:
    """The plugin's services, and short words for what a cluster does with them."""

    def __init__(self, directory: Path, channel: Any, node: Any = None) -> None:
        self.directory = directory  # what kubelet has for us
        services = csi.DESCRIPTOR.services_by_name
        self.identity = Stub(channel, services["Identity"])
        self.controller = Stub(channel, services["Controller"])
        self.group = Stub(channel, services["GroupController"])
        self.node = Stub(node or channel, services["Node"])

    async def create(self, name: str = "pvc-1", **fields: Any) -> csi.Volume:
        known: dict[str, Any] = {
            "volume_capabilities": [mount()],
            "capacity_range": csi.CapacityRange(required_bytes=GIB),
        }
        request = csi.CreateVolumeRequest(name=name, **(known | fields))
        answer: csi.CreateVolumeResponse = await self.controller.CreateVolume(request)
        return answer.volume

    async def publish(self, volume_id: str, node: str = NODE, **fields: Any) -> dict[str, str]:
        known = {"volume_capability": mount()}
        answer = await self.controller.ControllerPublishVolume(
            csi.ControllerPublishVolumeRequest(
                volume_id=volume_id, node_id=node, **(known | fields)
            )
        )
        return dict(answer.publish_context)

    async def unpublish(self, volume_id: str, node: str = NODE) -> None:
        await self.controller.ControllerUnpublishVolume(
            csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node)
        )

    async def delete(self, volume_id: str) -> None:
        await self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume_id))

    async def get(self, volume_id: str) -> csi.ControllerGetVolumeResponse:
        request = csi.ControllerGetVolumeRequest(volume_id=volume_id)
        answer: csi.ControllerGetVolumeResponse = await self.controller.ControllerGetVolume(request)
        return answer

    async def stage(
        self, volume_id: str, context: dict[str, str], capability: Any = None, at: str = STAGING
    ) -> None:
        await self.node.NodeStageVolume(
            csi.NodeStageVolumeRequest(
                volume_id=volume_id, publish_context=context, staging_target_path=self.path(at),
                volume_capability=capability or mount(),
            )
        )  # fmt: skip

    async def unstage(self, volume_id: str, at: str = STAGING) -> None:
        await self.node.NodeUnstageVolume(
            csi.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=self.path(at))
        )

    async def mount(
        self, volume_id: str, path: str = "pod-a", capability: Any = None, at: str = STAGING,
        **fields: Any,
    ) -> None:  # fmt: skip
        await self.node.NodePublishVolume(
            csi.NodePublishVolumeRequest(
                volume_id=volume_id, staging_target_path=self.path(at),
                target_path=self.path(path), volume_capability=capability or mount(), **fields,
            )
        )  # fmt: skip

    async def unmount(self, volume_id: str, path: str = "pod-a") -> None:
        await self.node.NodeUnpublishVolume(
            csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=self.path(path))
        )

    async def stats(self, volume_id: str, path: str = "pod-a") -> csi.NodeGetVolumeStatsResponse:
        request = csi.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=self.path(path))
        answer: csi.NodeGetVolumeStatsResponse = await self.node.NodeGetVolumeStats(request)
        return answer

    def path(self, name: str) -> str:
        return str(self.directory / name)


class Cluster:
    """Storage hosts, the first of which is the node too, and the plugin."""

    def __init__(self, plugin: Plugin, fronts: dict[str, Front], metrics: Metrics) -> None:
        self.plugin = plugin
        self.fronts = fronts
        self._metrics = metrics

    @property
    def give(self) -> Front:
        return self.fronts["give"]

    @property
    def facts(self) -> dict[str, Any]:
        return self.give.zfsilo.facts

    async def metrics_server(self) -> asyncio.Server:
        return await self._metrics.serve("127.0.0.1:0")

    def metrics(self) -> str:
        return generate_latest(self._metrics.registry).decode()


@asynccontextmanager
async def cluster_of(
    directory: Path, zones: dict[str, list[str]] | None = None, role: str = "all"
) -> AsyncIterator[Cluster]:
    """Run it; `zones`: of each storage host."""
    zones = zones or {"give": ["default"]}
    sockets = Path(tempfile.mkdtemp(prefix="zfsilo-"))
    kubelet = directory / "kubelet"
    kubelet.mkdir()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, sockets)
        fronts = {}
        for name in zones:
            settings = SETTINGS.but(
                host_id=NODE if name == "give" else name, node_paths=(str(kubelet),), zone="default"
            )
            place = directory / name
            place.mkdir()
            fronts[name] = await stack.enter_async_context(front_of(place, settings))
        known = {name: front.certified("host", NODE) for name, front in fronts.items()}
        servers = Servers(known.get)
        stack.push_async_callback(servers.close)
        fronts["give"].service.servers = servers
        config = Config(
            endpoint=f"unix:{sockets}/csi.sock",
            node=NodeConfig(socket=str(fronts["give"].node_path)),
            backends={
                name: _backend(directory, name, front, zones[name])
                for name, front in fronts.items()
            },
        )
        metrics = Metrics("test")
        server = Server(config.endpoint, metrics)
        compose(server, config, role, stack)
        await server.start()
        stack.push_async_callback(server.stop)
        channel = grpc.aio.insecure_channel(config.endpoint)
        stack.push_async_callback(channel.close)
        yield Cluster(Plugin(kubelet, channel), fronts, metrics)


def _backend(directory: Path, name: str, front: Front, zones: list[str]) -> BackendConfig:
    """Return how the plugin reaches a storage host: as a controller, over TLS."""
    join = directory / f"{name}.join"
    join.write_text(make_join(front.certified("controller", "csi")))
    return BackendConfig(join=str(join), zones=zones)


def mount(mode: str = "SINGLE_NODE_WRITER", **fields: Any) -> csi.VolumeCapability:
    """Return the use as a filesystem."""
    return csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(**fields),
        access_mode=Mode(mode=mode),
    )


def block(mode: str = "SINGLE_NODE_WRITER") -> csi.VolumeCapability:
    """Return the use as a raw block device."""
    return csi.VolumeCapability(
        block=csi.VolumeCapability.BlockVolume(),
        access_mode=Mode(mode=mode),
    )


async def until_done(call: Callable[[], Awaitable[object]], within_s: float = 10) -> object:
    """Repeat a call as the sidecars do, while somebody is away."""
    until = time.monotonic() + within_s
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code().name not in GONE or time.monotonic() > until:
                raise
            await asyncio.sleep(0.1)  # the sidecars wait longer


class fails:
    """Expect a call to end with a code, and its message to have a text."""

    def __init__(self, code: str, text: str = "") -> None:
        self.code = code
        self.text = text

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        assert error is not None, f"it worked, but {self.code} was expected"
        if not isinstance(error, grpc.aio.AioRpcError):
            return False
        details = error.details() or ""
        assert error.code().name == self.code, details
        assert self.text in details
        assert not [key for key, _value in error.trailing_metadata() or () if "details" in key]
        return True

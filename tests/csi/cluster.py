"""A cluster in one process: the plugin in front of one or more zfsilod, over real sockets."""

from __future__ import annotations

import copy
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
from prometheus_client import generate_latest
from zfsilo_csi.__main__ import add_services
from zfsilo_csi.backends import deciding
from zfsilo_csi.config import BackendConfig, NodeConfig, PluginConfig
from zfsilo_csi.metrics import CallMetrics
from zfsilo_csi.server import CsiServer

from tests.api.running import Front, front_of
from tests.csi.plugin_client import NODE, PluginClient
from tests.service_fixture import SETTINGS
from zfsilod.security.join_file import make_join
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator


class Cluster:
    """The plugin and its servers; the first server, give, is the node too."""

    def __init__(
        self,
        plugin: PluginClient,
        fronts: dict[str, Front],
        metrics: CallMetrics,
        config: PluginConfig,
    ) -> None:
        self.plugin = plugin
        self.fronts = fronts
        self.config = config
        self._metrics = metrics

    @property
    def give(self) -> Front:
        return self.fronts["give"]

    @property
    def facts(self) -> dict[str, Any]:
        return self.give.fixture.facts

    async def metrics_server(self, address: str) -> asyncio.Server:
        return await self._metrics.serve(address)

    def metrics(self) -> str:
        return generate_latest(self._metrics.registry).decode()


@asynccontextmanager
async def cluster_of(
    directory: Path, zones: dict[str, list[str]] | None = None, role: str = "all"
) -> AsyncIterator[Cluster]:
    """Run a cluster; `zones` has the zones of every server."""
    zones = zones or {"give": ["default"]}
    sockets = Path(tempfile.mkdtemp(prefix="zfsilo-"))
    kubelet = directory / "kubelet"
    kubelet.mkdir()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, sockets)
        fronts = await _start_servers(directory, zones, kubelet, stack)
        config = PluginConfig(
            endpoint=f"unix:{sockets}/csi.sock",
            node=NodeConfig(socket=str(fronts["give"].node_path)),
            backends={
                name: _backend(directory, name, front, zones[name])
                for name, front in fronts.items()
            },
        )
        metrics = CallMetrics("test")
        plugin = await stack.enter_async_context(_plugin(config, metrics, role, kubelet))
        yield Cluster(plugin, fronts, metrics, config)


@asynccontextmanager
async def _plugin(
    config: PluginConfig, metrics: CallMetrics, role: str, kubelet: Path
) -> AsyncIterator[PluginClient]:
    async with AsyncExitStack() as stack:
        server = CsiServer(config.endpoint, metrics)
        add_services(server, config, role, stack)
        await server.start()
        stack.push_async_callback(server.stop)
        channel = grpc.aio.insecure_channel(config.endpoint)
        stack.push_async_callback(channel.close)
        yield PluginClient(kubelet, channel)


@asynccontextmanager
async def restarted(cluster: Cluster) -> AsyncIterator[PluginClient]:
    """Run a controller that remembers no call of the first one."""
    config = copy.copy(cluster.config)
    config.endpoint += "-restarted"
    directory = cluster.plugin.directory
    async with _plugin(config, CallMetrics("test"), "controller", directory) as plugin:
        yield plugin


def ranked_first(backend: str, other: str) -> str:
    """Return the name of a volume that goes to a backend rather than to the other one."""
    pair: Any = [SimpleNamespace(key=key, zones=("default",)) for key in (backend, other)]
    return next(
        name for name in map("pvc-{}".format, range(99)) if deciding(pair, None, name)[0] is pair[0]
    )


async def _start_servers(
    directory: Path, zones: dict[str, list[str]], kubelet: Path, stack: AsyncExitStack
) -> dict[str, Front]:
    """Start a zfsilod for every server, and join give, which is the node, to all of them."""
    fronts = {}
    for name in zones:
        host_id = NODE if name == "give" else name
        settings = SETTINGS.but(host_id=host_id, node_paths=(str(kubelet),), zone="default")
        state = directory / name
        state.mkdir()
        fronts[name] = await stack.enter_async_context(front_of(state, settings))
    joined = {name: front.certified("host", NODE) for name, front in fronts.items()}
    servers = StorageServers(joined.get)
    stack.push_async_callback(servers.close)
    fronts["give"].service.context.servers = servers
    return fronts


def _backend(directory: Path, name: str, front: Front, zones: list[str]) -> BackendConfig:
    """Return the configuration of a backend: TLS with a join file of role controller."""
    join = directory / f"{name}.join"
    join.write_text(make_join(front.certified("controller", "csi")))
    return BackendConfig(join=str(join), zones=zones)

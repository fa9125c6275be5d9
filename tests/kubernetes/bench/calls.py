"""Calls of CSI without Kubernetes, many at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from tests.bench.table import Figure
from tests.channel import unix_channel_aio
from tests.csi.plugin_client import PluginClient, until_done
from tests.kubernetes.node import KUBELET, PLUGIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.node import KubeNode

CALLS = 200
CALL_S = 60.0  # --timeout of the sidecars in the chart; the plugin replies by itself before
SLACK_S = 10.0
PATIENCE_S = 600.0
FOLDER = Path(KUBELET, "plugins/kubernetes.io/csi/bench")
# After these codes kubelet and the sidecars repeat a call: its outcome is not known yet.
REPEATED = {"ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}


def figures(cluster: KubeCluster) -> Iterator[Figure]:
    """Make CALLS calls of each kind at once."""
    node = cluster.nodes[0]
    yield from asyncio.run(_with_plugin(cluster, lambda plugin: _at_once(plugin, node)))


async def _with_plugin(
    cluster: KubeCluster, measure: Callable[[PluginClient], Awaitable[list[Figure]]]
) -> list[Figure]:
    """Call the controller's plugin and that of the first node by their sockets."""
    controller = cluster.controller.machine.root / "csi/csi.sock"
    node = cluster.nodes[0].machine.root / PLUGIN.lstrip("/") / "csi.sock"
    async with unix_channel_aio(controller) as channel, unix_channel_aio(node) as other:
        return await measure(PluginClient(FOLDER, channel, other))


async def _at_once(plugin: PluginClient, node: KubeNode) -> list[Figure]:
    """Take CALLS volumes through the life that a pod gives them, each call for all at once."""
    names = [f"burst-{number}" for number in range(CALLS)]
    folders = [plugin.path(f"staging-{name}") for name in names]
    node.machine.run("mkdir", "-p", *folders)
    ids: dict[str, str] = {}
    contexts: dict[str, dict[str, str]] = {}

    async def create(name: str) -> None:
        # The server of the node's zone, as the scheduler would choose it.
        ids[name] = (await plugin.create(name, parameters={"backend": "give"})).volume_id

    async def publish(name: str) -> None:
        contexts[name] = await plugin.publish(ids[name], node.host)

    calls: dict[str, Callable[[str], Awaitable[Any]]] = {
        "CreateVolume": create,
        "ControllerPublishVolume": publish,
        "NodeStageVolume": lambda name: plugin.stage(
            ids[name], contexts[name], at=f"staging-{name}"
        ),
        "NodePublishVolume": lambda name: plugin.mount(ids[name], name, at=f"staging-{name}"),
        "NodeUnpublishVolume": lambda name: plugin.unmount(ids[name], name),
        "NodeUnstageVolume": lambda name: plugin.unstage(ids[name], f"staging-{name}"),
        "ControllerUnpublishVolume": lambda name: plugin.unpublish(ids[name], node.host),
        "DeleteVolume": lambda name: plugin.delete(ids[name]),
    }
    return [await _burst(method, call, names) for method, call in calls.items()]


async def _burst(method: str, call: Callable[[str], Awaitable[Any]], names: list[str]) -> Figure:
    """Make a call for all names at once, count the codes, and repeat what failed."""
    started = time.monotonic()
    codes = Counter(await asyncio.gather(*(_code(call, name) for name in names)))
    seconds = time.monotonic() - started
    await asyncio.gather(*(until_done(lambda n=name: call(n), PATIENCE_S) for name in names))  # type: ignore[misc]
    shown = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    final = set(codes) - {"OK"} - REPEATED
    name = f"{len(names)} {method} at once"
    return Figure(name, f"{shown}; {seconds:.1f} s", "no final error", not final)


async def _code(call: Callable[[str], Awaitable[Any]], name: str) -> str:
    try:
        await asyncio.wait_for(call(name), CALL_S + SLACK_S)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    except TimeoutError:
        return "DEADLINE_EXCEEDED"
    return "OK"

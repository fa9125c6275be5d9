"""Reports of the plugin: conditions, usage, capabilities, logs and metrics, all without secrets."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from csi.v1 import csi_pb2 as csi
from zfsilo_csi import json_log, service_capabilities

from tests.csi.cluster import Cluster, cluster_of
from tests.csi.plugin_client import GIB, NODE, STAGING, block, fails, mount, up
from tests.kubernetes.control_plane import free_address

MANIFESTS = Path(__file__).parents[2] / "csi/deploy/manifests/zfsilo-csi.yaml"
SOCKET = socket.socket


async def test_published_nodes_are_reported(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    assert (await plugin.get(volume_id)).status.published_node_ids == []
    await plugin.publish(volume_id)
    listed = await plugin.controller.ListVolumes(csi.ListVolumesRequest())
    assert listed.entries[0].status.published_node_ids == [NODE]
    assert not listed.entries[0].status.volume_condition.abnormal


async def test_an_abnormal_volume_is_reported(cluster: Cluster) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    volume_id = (await plugin.create()).volume_id
    await up(plugin, volume_id)
    healthy = await plugin.stats(volume_id)
    assert (healthy.volume_condition.abnormal, len(healthy.usage)) == (False, 2)
    assert {usage.unit for usage in healthy.usage} == {
        csi.VolumeUsage.BYTES,
        csi.VolumeUsage.INODES,
    }
    staged = f"mount:{plugin.path(STAGING)}"
    facts.effect(staged, facts.get(staged) | {"readonly": True})
    assert "read-only" in (await plugin.stats(volume_id)).volume_condition.message
    facts.effect(staged, facts.get(staged) | {"readonly": False})
    session = next(name for name in cluster.facts if name.startswith("session:"))
    facts.effect(session, None)
    lost = await plugin.stats(volume_id)
    assert lost.volume_condition.abnormal
    assert "no session" in lost.volume_condition.message


async def test_a_degraded_pool_is_reported(cluster: Cluster) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    volume_id = (await plugin.create()).volume_id
    assert not (await plugin.get(volume_id)).status.volume_condition.abnormal
    facts.effect("pool:tank", "DEGRADED")
    condition = (await plugin.get(volume_id)).status.volume_condition
    assert (condition.abnormal, "DEGRADED" in condition.message) == (True, True)
    facts.effect(next(name for name in cluster.facts if name.startswith("zvol:")), None)
    condition = (await plugin.get(volume_id)).status.volume_condition
    assert (condition.abnormal, "does not exist" in condition.message) == (True, True)


async def test_a_hung_filesystem_does_not_block_calls(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    await up(plugin, volume_id)
    released = threading.Event()

    def hang(_path: str) -> dict[str, int]:
        released.wait(60)
        return {"bytes_total": GIB, "bytes_used": 0, "bytes_available": GIB}

    monkeypatch.setattr(cluster.give.service.context.machine.mounts, "stats", hang)
    monkeypatch.setattr("zfsilod.service.stats.ANSWER_S", 0.2)
    for _time in range(3):
        hung = await plugin.stats(volume_id)
        assert not hung.usage
        assert "does not answer" in hung.volume_condition.message
    samplers = [thread for thread in threading.enumerate() if thread.name.startswith("stats")]
    assert len(samplers) == 1, "there is no second sample while the first one hangs"
    released.set()
    await asyncio.to_thread(samplers[0].join)
    assert (await plugin.stats(volume_id)).usage[0].total == GIB


async def test_a_raw_device_has_a_size(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create(volume_capabilities=[block()])).volume_id
    await up(plugin, volume_id, capability=block())
    usage = (await plugin.stats(volume_id)).usage
    assert [(entry.unit, entry.total, entry.used) for entry in usage] == [
        (csi.VolumeUsage.BYTES, GIB, 0)
    ]
    with fails("NOT_FOUND"):
        await plugin.stats(volume_id, "elsewhere")


async def test_a_raw_device_has_a_size_at_the_path_of_kubelet(cluster: Cluster) -> None:
    """Which asks at its own bind mount of the path where the plugin has mounted the device."""
    plugin = cluster.plugin
    volume_id = (await plugin.create(volume_capabilities=[block()])).volume_id
    context = await plugin.publish(volume_id, volume_capability=block())
    await plugin.stage(volume_id, context, block())
    await plugin.mount(volume_id, "volumeDevices/publish/pv/pod", block())
    assert (await plugin.stats(volume_id, "volumeDevices/pv/dev/pod")).usage[0].total == GIB
    for other in ("volumeDevices/pv/dev/other", "volumeDevices/other/dev/pod"):
        with fails("NOT_FOUND"):
            await plugin.stats(volume_id, other)


async def test_advertised_capabilities(cluster: Cluster) -> None:
    plugin = cluster.plugin
    request = csi.GetPluginCapabilitiesRequest()
    of_plugin = (await plugin.identity.GetPluginCapabilities(request)).capabilities
    assert [capability.service.type for capability in of_plugin] == [1, 2, 3, 4, 0]
    assert of_plugin[-1].volume_expansion.type == csi.PluginCapability.VolumeExpansion.ONLINE
    controller = await plugin.controller.ControllerGetCapabilities(
        csi.ControllerGetCapabilitiesRequest()
    )
    assert [capability.rpc.type for capability in controller.capabilities] == list(range(1, 18))
    node = await plugin.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest())
    assert [capability.rpc.type for capability in node.capabilities] == [1, 2, 3, 4, 5, 7, 8]
    old = service_capabilities.controller(frozenset())
    assert {5, 6, 7, 15}.isdisjoint(capability.rpc.type for capability in old.capabilities)
    old_plugin = service_capabilities.plugin(frozenset()).capabilities
    assert {3, 4}.isdisjoint(capability.service.type for capability in old_plugin)


async def test_node_id_and_zone(cluster: Cluster) -> None:
    info = await cluster.plugin.node.NodeGetInfo(csi.NodeGetInfoRequest())
    assert info.node_id == NODE
    assert dict(info.accessible_topology.segments) == {"topology.zfsilo.io/zone": "default"}


async def test_a_plugin_without_its_zfsilod(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        plugin = cluster.plugin
        await cluster.give.stop()
        assert not (await plugin.identity.Probe(csi.ProbeRequest())).ready.value
        assert (await plugin.identity.GetPluginInfo(csi.GetPluginInfoRequest())).name
        with fails("UNAVAILABLE"):
            await plugin.node.NodeGetInfo(csi.NodeGetInfoRequest(), timeout=5)


async def test_a_call_after_a_timeout_joins_the_operation(cluster: Cluster) -> None:
    """The first call ends with ABORTED, the operation goes on, the next call returns its result."""
    gate = cluster.give.fixture.launcher.gate
    gate.clear()
    request: Any = csi.CreateVolumeRequest(
        name="slow",
        volume_capabilities=[mount()],
        capacity_range=csi.CapacityRange(required_bytes=GIB),
    )
    with fails("ABORTED", "operation"):
        await cluster.plugin.controller.CreateVolume(request, timeout=1.5)
    gate.set()
    assert (await cluster.plugin.create("slow")).capacity_bytes == GIB


async def test_no_secret_in_any_response_or_log(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    plugin = cluster.plugin
    planted = {"password": "planted-secret"}
    volume_id = (await plugin.create(secrets=planted)).volume_id
    context = await plugin.publish(volume_id, secrets=planted)
    assert set(context) == {"epoch"}
    await plugin.stage(volume_id, context)
    listed = await plugin.controller.ListVolumes(csi.ListVolumesRequest())
    output = f"{listed}{await plugin.get(volume_id)}{context}{caplog.text}{cluster.metrics()}"
    store = cluster.give.service.context.store
    for key in (f"{volume_id.partition('/')[2]}/{NODE}", volume_id.partition("/")[2]):
        chap = store.chap(key).values()
        assert not [name for name, value in chap.items() if "password" in name and value in output]
    assert "planted-secret" not in output


async def test_every_call_is_logged_and_counted(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    volume = await cluster.plugin.create()
    with fails("NOT_FOUND"):
        await cluster.plugin.get("nobody")
    lines = [
        json.loads(json_log.JsonFormatter().format(r)) for r in caplog.records if "csi" in r.name
    ]
    created, missed = lines[-2:]
    assert (created["method"], created["code"]) == ("CreateVolume", "OK")
    assert created["volume"] == volume.volume_id
    assert created["operation"].startswith("operations/")
    assert (missed["code"], missed["message"]) == ("NOT_FOUND", "volume nobody does not exist")
    metrics = cluster.metrics()
    assert 'zfsilo_csi_calls_total{code="OK",method="CreateVolume"} 1.0' in metrics
    assert 'zfsilo_csi_calls_total{code="NOT_FOUND",method="ControllerGetVolume"} 1.0' in metrics


async def test_metrics_and_health_over_http(cluster: Cluster) -> None:
    server = await cluster.metrics_server("127.0.0.1:0")
    port = server.sockets[0].getsockname()[1]
    assert (await get("127.0.0.1", port, "/healthz")).endswith("\r\n\r\nok\n")
    assert "zfsilo_csi_calls" in await get("127.0.0.1", port, "/metrics")
    assert (await get("127.0.0.1", port, "/other")).startswith("HTTP/1.1 404")
    server.close()


async def get(host: str, port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    response = (await reader.read()).decode()
    writer.close()
    return response


@pytest.mark.parametrize("families", [("127.0.0.1", "::1"), ("127.0.0.1",)])
async def test_the_address_of_the_chart_is_of_both_families(
    cluster: Cluster, families: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubelet's probes go to the address of the pod, which is IPv6 alone in some clusters."""
    host = re.search(r'^    metrics = "(.*):9809"', MANIFESTS.read_text(), re.M)
    assert host
    port = int(free_address().rpartition(":")[2])
    if "::1" not in families:
        monkeypatch.setattr(socket, "socket", without_ipv6)
    server = await cluster.metrics_server(f"{host[1]}:{port}")
    for address in families:
        assert (await get(address, port, "/healthz")).endswith("ok\n")
    server.close()


def without_ipv6(family: int = socket.AF_INET, *details: Any, **more: Any) -> Any:
    """Make a socket as a kernel that was booted with ipv6.disable=1 does."""
    if family == socket.AF_INET6:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    return SOCKET(family, *details, **more)

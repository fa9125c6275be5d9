"""The node's id is local knowledge; its servers learn of it in the background."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo_csi import introductions

from tests.api.running import operations
from tests.csi.cluster import Cluster, cluster_of
from tests.csi.plugin_client import NODE, fails, until_known, up
from zfsilod.requests.hosts import DeleteHost

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

INFO = csi.NodeGetInfoRequest()


async def test_a_server_that_is_down_takes_no_driver_off_a_node(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        plugin = cluster.plugin
        here = await plugin.create("here", parameters={"backend": "give"})
        await cluster.fronts["other"].stop()
        assert (await plugin.node.NodeGetInfo(INFO, timeout=5)).node_id == NODE
        await up(plugin, here.volume_id)


async def test_a_silent_server_delays_no_answer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_arguments: object, **_more: object) -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(introductions, "AT_ONCE_S", 0.1)
    cluster.give.service.introduce = hang  # type: ignore[method-assign]
    started = time.monotonic()
    assert (await cluster.plugin.node.NodeGetInfo(INFO)).node_id == NODE
    assert time.monotonic() - started < 2


async def test_a_node_introduces_itself_when_its_server_is_back(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    from zfsilod.model.errors import Unavailable

    await cluster.give.fixture.do(DeleteHost(id=NODE))
    works = cluster.give.service.introduce

    async def fail(*_arguments: object, **_more: object) -> bool:
        raise Unavailable("server give does not answer")

    cluster.give.service.introduce = fail  # type: ignore[method-assign]
    await cluster.plugin.node.NodeGetInfo(INFO)
    await cluster.plugin.node.NodeGetInfo(INFO)
    volume_id = (await cluster.plugin.create()).volume_id
    with fails("NOT_FOUND", "does not know node take"):
        await cluster.plugin.publish(volume_id)
    cluster.give.service.introduce = works  # type: ignore[method-assign]
    await until_known(cluster.give)
    await up(cluster.plugin, volume_id)
    assert caplog.text.count("cannot introduce this node to server give") == 1


async def test_a_server_that_forgot_the_node_learns_of_it_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introductions, "REPEAT_S", 0.2)
    await cluster.plugin.node.NodeGetInfo(INFO)
    await cluster.give.fixture.do(DeleteHost(id=NODE))
    await until_known(cluster.give)


async def test_a_volume_that_the_node_may_not_see_introduces_it_at_once(cluster: Cluster) -> None:
    plugin = cluster.plugin
    await plugin.node.NodeGetInfo(INFO)
    volume_id = (await plugin.create()).volume_id
    context = await plugin.publish(volume_id)
    await plugin.unpublish(volume_id)
    await cluster.give.fixture.do(DeleteHost(id=NODE))
    with fails("FAILED_PRECONDITION", "publish it again"):
        await plugin.stage(volume_id, context)
    await until_known(cluster.give)


async def test_a_repeated_introduction_leaves_no_trace(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[str] = []
    monkeypatch.setattr(
        cluster.give.service.audit, "write", lambda sentence, _fields: records.append(sentence)
    )
    monkeypatch.setattr(introductions, "REPEAT_S", 0.02)
    calls = 0
    works = cluster.give.service.introduce

    async def count(server: str, *, validate_only: bool = False) -> bool:
        nonlocal calls
        calls += 1
        return await works(server, validate_only=validate_only)

    cluster.give.service.introduce = count  # type: ignore[method-assign]
    await cluster.plugin.node.NodeGetInfo(INFO)
    before = len(operations(cluster.give)), len(records)
    async with asyncio.timeout(10):
        while calls < 5:
            await asyncio.sleep(0.02)
    assert (len(operations(cluster.give)), len(records)) == before

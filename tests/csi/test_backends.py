"""Several storage hosts: which one is chosen, lists over all, and one that is down."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from csi.v1 import csi_pb2 as csi
from zfsilo_csi.api import Zfsilod
from zfsilo_csi.calls import Call
from zfsilo_csi.errors import CsiError

from tests.csi.cluster import Cluster, cluster_of, fails, mount
from tests.csi.test_life import down, up
from zfsilod.security.join_file import make_join

if TYPE_CHECKING:
    from pathlib import Path

ZONE = "topology.zfsilo.io/zone"
ZONES = {"give": ["default", "west"], "other": ["east"]}


def topology(*zones: str) -> list[csi.Topology]:
    return [csi.Topology(segments={ZONE: zone}) for zone in zones]


async def stop(cluster: Cluster, name: str) -> None:
    """Take a storage host away."""
    await cluster.fronts[name].stop()


async def test_a_volume_is_made_where_it_can_be_reached(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, ZONES) as cluster:
        plugin = cluster.plugin

        async def zones(name: str, **fields: Any) -> list[str]:
            needs = csi.TopologyRequirement(**fields)
            volume = await plugin.create(name, accessibility_requirements=needs)
            return [each.segments[ZONE] for each in volume.accessible_topology]

        assert await zones("a", requisite=topology("east")) == ["east"]
        assert await zones("b", requisite=topology("west")) == ["default", "west"]
        both = topology("east", "west")
        assert await zones("c", requisite=both, preferred=topology("east")) == ["east"]
        assert await zones("d", requisite=both, preferred=topology("west")) == ["default", "west"]
        with fails("RESOURCE_EXHAUSTED", "no backend serves"):
            await zones("e", requisite=topology("north"))


async def test_a_name_is_one_volume_wherever_it_is(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        plugin = cluster.plugin
        made = [(await plugin.create(f"pvc-{n}")).volume_id for n in range(12)]
        again = [(await plugin.create(f"pvc-{n}")).volume_id for n in range(12)]
        assert made == again
        assert {each.partition("/")[0] for each in made} == {"give", "other"}
        moved = await plugin.create("there", parameters={"backend": "other"})
        assert moved.volume_id.startswith("other/")
        await up(plugin, moved.volume_id, mount())
        await down(plugin, moved.volume_id)


async def test_lists_go_over_all(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        plugin = cluster.plugin
        made = {(await plugin.create(f"pvc-{n}")).volume_id for n in range(9)}
        for size in (0, 1, 2, 4, 9, 100):
            found: list[str] = []
            token, pages = "", 0
            while token or not pages:
                request = csi.ListVolumesRequest(max_entries=size, starting_token=token)
                answer = await plugin.controller.ListVolumes(request)
                assert not size or len(answer.entries) <= size
                found += [each.volume.volume_id for each in answer.entries]
                token, pages = answer.next_token, pages + 1
            assert (len(found), set(found)) == (9, made)
        for token in ("nobody:", "give", "give:made-up", "x"):
            with fails("ABORTED"):
                await plugin.controller.ListVolumes(csi.ListVolumesRequest(starting_token=token))
        with fails("INVALID_ARGUMENT"):
            await plugin.controller.ListVolumes(csi.ListVolumesRequest(max_entries=-1))


async def test_room_is_the_sum_and_the_largest(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, ZONES) as cluster:
        plugin = cluster.plugin

        async def room(**fields: Any) -> csi.GetCapacityResponse:
            answer: csi.GetCapacityResponse = await plugin.controller.GetCapacity(
                csi.GetCapacityRequest(**fields)
            )
            return answer

        whole = await room()
        one = await room(accessible_topology=topology("east")[0])
        assert whole.available_capacity == 2 * one.available_capacity
        assert whole.maximum_volume_size.value == one.available_capacity
        assert (await room(parameters={"backend": "other"})) == one
        nowhere = await room(accessible_topology=topology("north")[0])
        assert nowhere.available_capacity == 0
        odd = await room(volume_capabilities=[mount(fs_type="btrfs")])
        assert odd.available_capacity == 0
        thick = await room(parameters={"thin": "false"})
        assert 0 < thick.available_capacity < whole.available_capacity, "thin ones may promise more"
        with fails("INVALID_ARGUMENT", "mountpoint"):
            await room(parameters={"zfs.mountpoint": "/etc"})


async def test_one_that_is_down(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        plugin = cluster.plugin
        here = await plugin.create("here", parameters={"backend": "give"})
        there = await plugin.create("there", parameters={"backend": "other"})
        await stop(cluster, "other")
        for call in (
            plugin.create("new"),  # it may have been made there, a moment ago
            plugin.delete(there.volume_id),
            plugin.unpublish(there.volume_id),  # never OK: its node may still write
            plugin.controller.ListVolumes(csi.ListVolumesRequest(), timeout=10),
            plugin.controller.GetCapacity(csi.GetCapacityRequest(), timeout=10),
            plugin.node.NodeGetInfo(csi.NodeGetInfoRequest(), timeout=10),
        ):
            with fails("UNAVAILABLE", "other"):
                await call
        assert (await plugin.create("here", parameters={"backend": "give"})) == here
        await up(plugin, here.volume_id, mount())
        await down(plugin, here.volume_id)
        probe = await plugin.identity.Probe(csi.ProbeRequest())
        assert probe.ready.value, "the node's own zfsilod answers"


@pytest.mark.parametrize(("resets", "reached"), [(1, True), (2, False)])
async def test_a_connection_of_before_a_power_cut(resets: int, reached: bool) -> None:
    left = resets
    nothing = grpc.aio.Metadata()

    class Answer:
        """Of a call whose connection is reset under it, as often as is asked for."""

        def __await__(self) -> Any:
            nonlocal left
            left -= 1
            if left >= 0:
                code = grpc.StatusCode.UNAVAILABLE
                raise grpc.aio.AioRpcError(code, nothing, nothing, "Stream removed")
            yield from asyncio.sleep(0).__await__()
            return "reached"

        async def initial_metadata(self) -> Any:
            return nothing

    class Channel:
        def unary_unary(self, _method: str, **_how: Any) -> Any:
            return lambda _request, *, timeout: Answer()

    call = Call(SimpleNamespace(time_remaining=lambda: 10.0))
    asked = Zfsilod("backend give", Channel()).volumes.GetVolume(None, call)
    if reached:
        assert await asked == "reached"
        return
    with pytest.raises(CsiError, match="Stream removed"):
        await asked
    assert left == 0, "asked twice, and no more"


async def test_an_id_of_a_backend_that_is_not_configured(cluster: Cluster) -> None:
    plugin = cluster.plugin
    with fails("UNAVAILABLE", "not in the configuration"):
        await plugin.delete("gone/csi-aaaaaaaaaaaaaaaaaaaaaaaaaa")
    for odd in ("fake-vol-id", "a/b/c", "/", "UP/case", "é/x", "x" * 300):
        await plugin.delete(odd)
        with fails("NOT_FOUND"):
            await plugin.get(odd)


async def test_a_renewed_join_file_is_read_without_a_restart(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, join = cluster.plugin, tmp_path / "give.join"
    good = join.read_text()

    def put(text: str) -> None:
        draft = tmp_path / "draft"
        draft.write_text(text)
        draft.rename(join)

    cluster.give.zfsilo.launcher.gate.clear()
    slow = asyncio.ensure_future(plugin.create("slow"))
    await plugin.controller.ListVolumes(csi.ListVolumesRequest())
    put("no TOML, and a secret")
    await plugin.controller.ListVolumes(csi.ListVolumesRequest())
    put(make_join(cluster.give.certified("controller", "csi", by="stranger")))
    with fails("UNAVAILABLE"):
        await plugin.controller.ListVolumes(csi.ListVolumesRequest())
    put(good)
    cluster.give.zfsilo.launcher.gate.set()
    assert (await slow).volume_id
    await plugin.create("soon")
    assert "is no TOML; what it said before is used" in caplog.text
    assert "a secret" not in caplog.text

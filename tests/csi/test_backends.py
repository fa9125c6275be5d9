"""Several backends: placement of volumes, lists over all, capacity, and a backend that is down."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from csi.v1 import csi_pb2 as csi
from zfsilo_csi.calls import CsiCall
from zfsilo_csi.errors import CsiError
from zfsilo_csi.stubs import Zfsilod

from tests.csi.cluster import Cluster, cluster_of, ranked_first
from tests.csi.plugin_client import down, fails, mount, up
from zfsilod.security.join_file import make_join

if TYPE_CHECKING:
    from pathlib import Path

ZONE = "topology.zfsilo.io/zone"
ZONES = {"give": ["default", "west"], "other": ["east"]}


def topology(*zones: str) -> list[csi.Topology]:
    return [csi.Topology(segments={ZONE: zone}) for zone in zones]


async def test_a_volume_is_created_where_it_can_be_reached(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, ZONES) as cluster:
        plugin = cluster.plugin

        async def zones(name: str, **fields: Any) -> list[str]:
            needs = csi.TopologyRequirement(**fields)
            volume = await plugin.create(name, accessibility_requirements=needs)
            return [topology.segments[ZONE] for topology in volume.accessible_topology]

        assert await zones("a", requisite=topology("east")) == ["east"]
        assert await zones("b", requisite=topology("west")) == ["default", "west"]
        both = topology("east", "west")
        assert await zones("c", requisite=both, preferred=topology("east")) == ["east"]
        assert await zones("d", requisite=both, preferred=topology("west")) == ["default", "west"]
        with fails("RESOURCE_EXHAUSTED", "no backend serves"):
            await zones("e", requisite=topology("north"))


async def test_a_name_is_one_volume_on_all_backends(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        plugin = cluster.plugin
        first = [(await plugin.create(f"pvc-{n}")).volume_id for n in range(12)]
        again = [(await plugin.create(f"pvc-{n}")).volume_id for n in range(12)]
        assert first == again
        assert {volume_id.partition("/")[0] for volume_id in first} == {"give", "other"}
        there = await plugin.create("there", parameters={"backend": "other"})
        assert there.volume_id.startswith("other/")
        await up(plugin, there.volume_id)
        await down(plugin, there.volume_id)


async def test_lists_span_all_backends(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        plugin = cluster.plugin
        volume_ids = {(await plugin.create(f"pvc-{n}")).volume_id for n in range(9)}
        for size in (0, 1, 2, 4, 9, 100):
            listed: list[str] = []
            token, pages = "", 0
            while token or not pages:
                request = csi.ListVolumesRequest(max_entries=size, starting_token=token)
                response = await plugin.controller.ListVolumes(request)
                assert not size or len(response.entries) <= size
                listed += [entry.volume.volume_id for entry in response.entries]
                token, pages = response.next_token, pages + 1
            assert (len(listed), set(listed)) == (9, volume_ids)
        for token in ("nobody:", "give", "give:made-up", "x"):
            with fails("ABORTED"):
                await plugin.controller.ListVolumes(csi.ListVolumesRequest(starting_token=token))
        with fails("INVALID_ARGUMENT"):
            await plugin.controller.ListVolumes(csi.ListVolumesRequest(max_entries=-1))


async def test_capacity_is_the_sum_and_the_maximum(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, ZONES) as cluster:
        plugin = cluster.plugin

        async def capacity(**fields: Any) -> csi.GetCapacityResponse:
            response: csi.GetCapacityResponse = await plugin.controller.GetCapacity(
                csi.GetCapacityRequest(**fields)
            )
            return response

        whole = await capacity()
        one = await capacity(accessible_topology=topology("east")[0])
        assert whole.available_capacity == 2 * one.available_capacity
        assert whole.maximum_volume_size.value == one.available_capacity
        assert (await capacity(parameters={"backend": "other"})) == one
        nowhere = await capacity(accessible_topology=topology("north")[0])
        assert nowhere.available_capacity == 0
        odd = await capacity(volume_capabilities=[mount(fs_type="btrfs")])
        assert odd.available_capacity == 0
        thick = await capacity(parameters={"thin": "false"})
        assert 0 < thick.available_capacity < whole.available_capacity, (
            "thin volumes may overcommit"
        )
        with fails("INVALID_ARGUMENT", "mountpoint"):
            await capacity(parameters={"zfs.mountpoint": "/etc"})
        await cluster.fronts["other"].stop()
        assert await capacity() == await capacity(parameters={"backend": "give"})
        for unknown in (
            {"accessible_topology": topology("east")[0]},
            {"parameters": {"backend": "other"}},
        ):
            with fails("UNAVAILABLE", "other"):
                await capacity(**unknown)
        with fails("INVALID_ARGUMENT", "mountpoint"):
            await capacity(parameters={"zfs.mountpoint": "/etc"})


async def test_a_backend_that_is_down(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        plugin = cluster.plugin
        here = await plugin.create("here", parameters={"backend": "give"})
        there = await plugin.create("there", parameters={"backend": "other"})
        await cluster.fronts["other"].stop()
        for call in (
            plugin.create(
                ranked_first("other", "give")
            ),  # an earlier call may have created it there
            plugin.delete(there.volume_id),
            plugin.unpublish(there.volume_id),  # not OK: the node may still write
            plugin.controller.ListVolumes(csi.ListVolumesRequest(), timeout=10),
        ):
            with fails("UNAVAILABLE", "other"):
                await call
        assert (await plugin.create("here", parameters={"backend": "give"})) == here
        assert (await plugin.create(ranked_first("give", "other"))).volume_id.startswith("give/")
        await up(plugin, here.volume_id)
        await down(plugin, here.volume_id)
        probe = await plugin.identity.Probe(csi.ProbeRequest())
        assert probe.ready.value, "the node's own zfsilod replies"


@pytest.mark.parametrize(("resets", "reached"), [(1, True), (2, False)])
async def test_a_connection_that_predates_a_power_cut(resets: int, reached: bool) -> None:
    left = resets
    nothing = grpc.aio.Metadata()

    class ResetCall:
        """A call whose connection is reset the first `resets` times."""

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

    class ResetChannel:
        def unary_unary(self, _method: str, **_options: Any) -> Any:
            return lambda _request, *, timeout: ResetCall()

        unary_stream = unary_unary

    call = CsiCall(SimpleNamespace(time_remaining=lambda: 10.0))
    pending = Zfsilod("backend give", ResetChannel()).volumes.GetVolume(None, call)
    if reached:
        assert await pending == "reached"
        return
    with pytest.raises(CsiError, match="Stream removed"):
        await pending
    assert left == 0, "two attempts, no third"


async def test_an_id_of_a_backend_that_is_not_configured(cluster: Cluster) -> None:
    plugin = cluster.plugin
    with fails("UNAVAILABLE", "not in the plugin's configuration"):
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

    cluster.give.fixture.launcher.gate.clear()
    slow = asyncio.ensure_future(plugin.create("slow"))
    await plugin.controller.ListVolumes(csi.ListVolumesRequest())
    put("invalid TOML with a secret")
    await plugin.controller.ListVolumes(csi.ListVolumesRequest())
    put(make_join(cluster.give.certified("controller", "csi", by="stranger")))
    with fails("UNAVAILABLE"):
        await plugin.controller.ListVolumes(csi.ListVolumesRequest())
    put(good)
    cluster.give.fixture.launcher.gate.set()
    assert (await slow).volume_id
    await plugin.create("soon")
    assert "is not valid TOML" in caplog.text
    assert "the previous credentials stay in use" in caplog.text
    assert "a secret" not in caplog.text


async def test_a_backend_that_was_removed_from_the_configuration(cluster: Cluster) -> None:
    """What it stores is unknown: neither gone nor empty, and no reason to try another zone."""
    plugin = cluster.plugin
    controller = plugin.controller
    gone = "removed/csi-a"
    content = csi.VolumeContentSource
    snapshot = content(snapshot=content.SnapshotSource(snapshot_id=gone))
    volume = content(volume=content.VolumeSource(volume_id=gone))
    calls = (
        lambda: plugin.get(gone),
        lambda: plugin.publish(gone),
        lambda: plugin.unpublish(gone),
        lambda: plugin.delete(gone),
        lambda: plugin.create("restored", volume_content_source=snapshot),
        lambda: plugin.create("cloned", volume_content_source=volume),
        lambda: controller.ListSnapshots(csi.ListSnapshotsRequest(snapshot_id=gone)),
        lambda: controller.ListSnapshots(csi.ListSnapshotsRequest(source_volume_id=gone)),
        lambda: plugin.stage(gone, {"epoch": "1"}),
    )
    for call in calls:
        with fails("UNAVAILABLE", "[backends.removed]"):
            await call()
    await plugin.unmount(gone)
    await plugin.unstage(gone)

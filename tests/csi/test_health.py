"""Health of volumes and of the storage, as CSI 1.13 asks for it, with statuses and reasons."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import volume_pb2 as pb
from zfsilo_csi import health, ids, introductions, pagination
from zfsilo_csi.errors import Code, CsiError
from zfsilo_csi.node_health import MAX_KNOWN, KnownVolumes

from tests.csi.cluster import Cluster, cluster_of
from tests.csi.plugin_client import STAGING, PluginClient, block, fails, until_known, up
from zfsilod.model.identity import DAEMON
from zfsilod.model.reasons import REASONS
from zfsilod.model.records import Condition, Volume

if TYPE_CHECKING:
    import pytest

    from tests.api.running import Front

DEGRADED, INACCESSIBLE, DATA_LOSS = csi.DEGRADED, csi.INACCESSIBLE, csi.DATA_LOSS
STORAGE_DEGRADED, STORAGE_UNREACHABLE = csi.STORAGE_DEGRADED, csi.STORAGE_UNREACHABLE


def entries_of(reply: csi.VolumeHealth) -> set[tuple[int, str]]:
    """Return status and reason of every entry; each has a message, and is there once."""
    entries = [(entry.status, entry.reason) for entry in reply.health_statuses]
    assert all(entry.message for entry in reply.health_statuses)
    assert len(set(entries)) == len(entries)
    return set(entries)


async def of_controller(plugin: PluginClient, volume_id: str) -> set[tuple[int, str]]:
    request = csi.ControllerGetVolumeHealthRequest(volume_id=volume_id)
    response = await plugin.controller.ControllerGetVolumeHealth(request)
    assert response.volume_health.volume_id == volume_id
    return entries_of(response.volume_health)


async def of_node(plugin: PluginClient, volume_id: str) -> set[tuple[int, str]]:
    request = csi.NodeGetVolumeHealthRequest(volume_id=volume_id)
    response = await plugin.node.NodeGetVolumeHealth(request)
    assert response.volume_health.volume_id == volume_id
    return entries_of(response.volume_health)


async def page_of(
    plugin: PluginClient, token: str = "", limit: int = 0
) -> tuple[dict[str, set[tuple[int, str]]], str]:
    request = csi.ControllerListVolumeHealthRequest(max_entries=limit, starting_token=token)
    response = await plugin.controller.ControllerListVolumeHealth(request)
    entries = {health.volume_id: entries_of(health) for health in response.entries}
    assert len(entries) == len(response.entries)
    return entries, response.next_token


async def of_storage(plugin: PluginClient) -> dict[tuple[int, str], str]:
    response = await plugin.node.NodeGetStorageHealth(csi.NodeGetStorageHealthRequest())
    return {(entry.status, entry.reason): entry.message for entry in response.backend_health}


def record(front: Front, volume_id: str, *reasons: str) -> None:
    """Record problems of a volume, as a reconcile does."""
    name = volume_id.partition("/")[2]
    uid = front.read(lambda txn: txn.get(Volume, name)).uid
    sentences = tuple(f"{name} has the problem {number}" for number in range(max(1, len(reasons))))
    front.write(lambda txn: txn.put(Condition(id=uid, sentences=sentences, reasons=reasons)))


async def test_a_healthy_volume_has_no_entries(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    assert await of_controller(plugin, volume_id) == set()
    await up(plugin, volume_id)
    assert await of_controller(plugin, volume_id) == set()
    assert await of_node(plugin, volume_id) == set()
    assert await page_of(plugin) == ({}, "")
    assert await of_storage(plugin) == {}


async def test_a_degraded_pool_concerns_all_of_its_volumes(cluster: Cluster) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    volumes = [(await plugin.create(name)).volume_id for name in ("a", "b")]
    facts.effect("pool:tank", "DEGRADED")
    degraded = {(DEGRADED, "PoolDegraded")}
    assert await of_controller(plugin, volumes[0]) == degraded
    assert await page_of(plugin) == (dict.fromkeys(sorted(volumes), degraded), "")
    facts.effect("pool:tank", "SUSPENDED")
    suspended = {(INACCESSIBLE, "PoolSuspended")}
    assert await of_controller(plugin, volumes[0]) == suspended
    assert (await page_of(plugin))[0] == dict.fromkeys(volumes, suspended)
    facts.effect("pool:tank", None)
    assert await page_of(plugin) == ({}, "")


async def test_a_missing_zvol_is_a_loss_of_data(cluster: Cluster) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    volume_id = (await plugin.create()).volume_id
    facts.effect(next(name for name in cluster.facts if name.startswith("zvol:")), None)
    lost = {(DATA_LOSS, "ZvolMissing")}
    assert await of_controller(plugin, volume_id) == lost
    await cluster.give.service.reconciler.sync_all(DAEMON)
    assert await of_controller(plugin, volume_id) == lost, "recorded and probed: one entry"
    assert await page_of(plugin) == ({volume_id: lost}, "")
    facts.effect("pool:tank", "DEGRADED")
    assert await of_controller(plugin, volume_id) == lost | {(DEGRADED, "PoolDegraded")}


async def test_a_failed_filesystem_is_inaccessible_from_its_node(cluster: Cluster) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    volume_id = (await plugin.create()).volume_id
    await up(plugin, volume_id)
    staged = f"mount:{plugin.path(STAGING)}"
    facts.effect(staged, facts.get(staged) | {"readonly": True})
    assert await of_node(plugin, volume_id) == {(INACCESSIBLE, "FilesystemFails")}
    # The node is its own server here, and other nodes may use the volume.
    assert await of_controller(plugin, volume_id) == {(DEGRADED, "FilesystemFails")}
    facts.effect(staged, facts.get(staged) | {"readonly": False})
    facts.effect(f"failed:{facts.get(staged)['serial']}", [])
    assert await of_node(plugin, volume_id) == {(DEGRADED, "FilesystemErrors")}
    facts.effect(f"failed:{facts.get(staged)['serial']}", None)
    assert await of_node(plugin, volume_id) == set()


async def test_a_lost_path_degrades_its_volume(cluster: Cluster) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    volume_id = (await plugin.create()).volume_id
    await up(plugin, volume_id)
    (session,) = (name for name in cluster.facts if name.startswith("session:"))
    facts.effect(session, facts.get(session) | {"lost_paths": ["10.88.0.1:4420"]})
    assert await of_node(plugin, volume_id) == {(DEGRADED, "PathLost")}


async def test_a_lost_session_is_a_problem_of_volume_and_storage(cluster: Cluster) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    raw: Any = {"volume_capabilities": [block()]}
    volumes = [(await plugin.create(name, **raw)).volume_id for name in ("a", "b")]
    for number, volume_id in enumerate(volumes):
        await up(plugin, volume_id, f"pod-{number}", block())
    sessions = [name for name in cluster.facts if name.startswith("session:")]
    assert len(sessions) == 2
    facts.effect(sessions[0], None)
    states = [await of_node(plugin, volume_id) for volume_id in volumes]
    assert sorted(states, key=len) == [set(), {(INACCESSIBLE, "SessionLost")}]
    assert list(await of_storage(plugin)) == [(STORAGE_DEGRADED, "SessionsLost")]
    facts.effect(sessions[1], None)
    ((problem, message),) = (await of_storage(plugin)).items()
    assert problem == (STORAGE_UNREACHABLE, "SessionsLost")
    assert "2 of 2 sessions with server give" in message


async def test_a_volume_that_cannot_be_staged_has_a_reason(cluster: Cluster) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    volume_id = (await plugin.create()).volume_id
    with fails("NOT_FOUND", "is not attached to this node"):
        await of_node(plugin, volume_id)
    context = await plugin.publish(volume_id)
    with fails("FAILED_PRECONDITION"):
        await plugin.stage(volume_id, {"epoch": "7"})
    assert await of_node(plugin, volume_id) == {(INACCESSIBLE, "StageFailed")}
    await plugin.stage(volume_id, context)
    assert await of_node(plugin, volume_id) == set()
    facts.effect(f"mount:{plugin.path(STAGING)}", None)
    assert await of_node(plugin, volume_id) == {(INACCESSIBLE, "NotMounted")}
    await plugin.unstage(volume_id)
    with fails("NOT_FOUND"):
        await of_node(plugin, volume_id)


def test_the_known_volumes_are_limited() -> None:
    known = KnownVolumes()
    handles = [ids.Handle("give", f"v{number}") for number in range(MAX_KNOWN + 1)]
    for handle in handles:
        known.failed(handle, CsiError(Code.UNAVAILABLE, "no reply"))
    assert [known.failure(handle) == [] for handle in handles] == [True] + [False] * MAX_KNOWN
    known.failed(handles[0], CsiError(Code.ABORTED, "an operation is running"))
    assert known.failure(handles[0]) == []
    assert known.latest({"give"}, 2) == handles[:-3:-1]
    assert known.latest({"other"}, 2) == []


async def test_an_unknown_volume_is_not_found(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for volume_id in ("nobody", "give/csi-none", "give/" + "x" * 4000, "give/../x", "\u202e/\0"):
        with fails("NOT_FOUND"):
            await of_controller(plugin, volume_id)
        with fails("NOT_FOUND"):
            await of_node(plugin, volume_id)
    for volume_id, code in (("", "INVALID_ARGUMENT"), ("elsewhere/csi-x", "UNAVAILABLE")):
        with fails(code):
            await of_controller(plugin, volume_id)
    with fails("INVALID_ARGUMENT"):
        await of_node(plugin, "")


async def test_pages_have_all_volumes_with_problems_once(tmp_path: Path) -> None:
    zones = {"give": ["default"], "back": ["other"]}
    async with cluster_of(tmp_path, zones) as cluster:
        plugin, wanted = cluster.plugin, {}
        for number in range(8):
            backend = "give" if number % 2 else "back"
            volume = await plugin.create(f"v{number}", parameters={"backend": backend})
            if number > 1:
                record(cluster.fronts[backend], volume.volume_id, "NEEDS_REPAIR", "LOST")
                wanted[volume.volume_id] = {(DEGRADED, "NeedsRepair"), (DATA_LOSS, "ZvolMissing")}
        assert await page_of(plugin) == (wanted, "")
        for limit in range(1, 7):
            collected: dict[str, set[tuple[int, str]]] = {}
            token, pages = "", 0
            while token or not pages:
                entries, token = await page_of(plugin, token, limit)
                assert len(entries) <= limit
                assert not collected.keys() & entries.keys()
                collected |= entries
                pages += 1
                assert pages <= 10
            assert collected == wanted
        with fails("INVALID_ARGUMENT", "max_entries"):
            await page_of(plugin, limit=-1)


async def test_a_page_is_limited_and_resumed_within_a_page_of_the_backend(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = cluster.plugin
    volumes = [(await plugin.create(f"v{number}")).volume_id for number in range(7)]
    for volume_id in volumes:
        record(cluster.give, volume_id, "UNKNOWN")
    monkeypatch.setattr(pagination, "MAX_PAGE", 3)
    monkeypatch.setattr(pagination, "MAX_ITEMS", 4)
    first, token = await page_of(plugin)
    second, end = await page_of(plugin, token)
    assert (len(first), len(second), end) == (4, 3, "")
    assert sorted(first | second) == sorted(volumes)


async def test_hostile_tokens_are_aborted(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for number in range(2):
        record(cluster.give, (await plugin.create(f"v{number}")).volume_id, "LOST")
    _entries, token = await page_of(plugin, limit=1)
    volumes = await plugin.controller.ListVolumes(csi.ListVolumesRequest(max_entries=1))
    for hostile in (
        "give",
        "give:x",
        "give:-1:",
        "give:1e3:",
        "give:99999:",
        "give:\u0663:",
        "give::",
        "give:0:x",
        "elsewhere:0:",
        f"{token}x",
        volumes.next_token,
        "x" * 100_000,
    ):
        with fails("ABORTED"):
            await page_of(plugin, hostile)
    with fails("ABORTED"):
        request = csi.ListVolumesRequest(starting_token=token)
        await plugin.controller.ListVolumes(request)
    assert await page_of(plugin, "give:9999:") == ({}, "")


async def test_an_unreachable_backend_is_neither_healthy_nor_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zones = {name: ["default"] for name in ("give", "back", "bare")}
    async with cluster_of(tmp_path, zones) as cluster:
        plugin = cluster.plugin
        raw: Any = {"volume_capabilities": [block()], "parameters": {"backend": "back"}}
        volume_id = (await plugin.create(**raw)).volume_id
        await of_storage(plugin)
        await until_known(cluster.fronts["back"])
        await up(plugin, volume_id, capability=block())
        assert await of_storage(plugin) == {}
        for name in ("back", "bare"):
            await cluster.fronts[name].stop()
        monkeypatch.setattr(introductions, "FRESH_S", 1.0)
        await asyncio.sleep(1.0)  # until the earlier outcome is not fresh any more
        problems = await of_storage(plugin)
        assert len(problems) == 2
        degraded = problems[STORAGE_DEGRADED, "ServerNotAnswering"]
        assert "server back does not reply" in degraded, "its sessions go on"
        unreachable = problems[STORAGE_UNREACHABLE, "ServerNotAnswering"]
        assert "server bare does not reply" in unreachable, "no session with it is known"
        with fails("UNAVAILABLE"):
            await of_controller(plugin, volume_id)
        with fails("UNAVAILABLE"):
            await page_of(plugin)


async def test_a_restarted_plugin_learns_of_sessions_from_kubelet(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, facts = cluster.plugin, cluster.give.fixture.host.facts
    volume_id = (await plugin.create()).volume_id
    with monkeypatch.context() as forgetful:
        forgetful.setattr(KnownVolumes, "seen", lambda *_arguments: None)
        await up(plugin, volume_id)
    facts.effect(next(name for name in cluster.facts if name.startswith("session:")), None)
    assert await of_storage(plugin) == {}
    await plugin.stats(volume_id)  # by kubelet, once a minute
    assert list(await of_storage(plugin)) == [(STORAGE_UNREACHABLE, "SessionsLost")]


def test_statuses_are_of_reasons_that_exist() -> None:
    assert set(health.STATUSES) - {health.STAGE_FAILED} <= set(REASONS)
    assert set(health.STATUSES) >= health.OF_CLIENT
    for status, reason in health.STATUSES.values():
        assert status in (DEGRADED, INACCESSIBLE, DATA_LOSS)
        assert reason.isalpha()
        assert reason[0].isupper()


def test_the_documented_table_is_the_one_in_use() -> None:
    lines = (Path(__file__).parents[2] / "docs/kubernetes.md").read_text().splitlines()
    for status in (DEGRADED, INACCESSIBLE, DATA_LOSS):
        name = csi.VolumeHealthErrorType.Name(status)
        (row,) = (line for line in lines if line.startswith(f"| `{name}` |"))
        documented = re.findall(r"[A-Z][A-Za-z]+", row.removeprefix(f"| `{name}` |"))
        used = [reason for one, reason in health.STATUSES.values() if one == status]
        assert sorted(documented) == sorted(set(used)), name


def test_a_reply_of_an_older_or_hostile_zfsilod_is_limited() -> None:
    many = [f"REASON_{number}" for number in range(3000)]
    volume = pb.Volume(conditions=["\u00e4" * 2000] * 3000, condition_reasons=many)
    reply = health.volume_health("give/x", health.problems_of(volume))
    assert len(reply.health_statuses) == health.MAX_ENTRIES
    assert reply.ByteSize() < 2048, "so that a page is smaller than the 4 MiB that clients accept"
    for reasons in ([], ["x y", "\n"], ["LOST"] * 5):
        volume = pb.Volume(conditions=["a sentence", "another"], condition_reasons=reasons)
        wanted = (DATA_LOSS, "ZvolMissing") if len(reasons) > 2 else (DEGRADED, "OtherProblem")
        assert entries_of(health.volume_health("x", health.problems_of(volume))) == {wanted}

"""Hostile requests to the plugin, and backends that answer nonsense, too much, or nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from csi.v1 import csi_pb2 as csi
from google.protobuf.message_factory import GetMessageClass
from zfsilo.v1 import volume_pb2 as pb
from zfsilo_csi import pagination, volume_creation
from zfsilo_csi.backends import Backends
from zfsilo_csi.calls import MAX_NOTE_CHARACTERS, CsiCall
from zfsilo_csi.config import BackendConfig
from zfsilo_csi.errors import CsiError
from zfsilo_csi.ids import NAME_LABEL, id_of
from zfsilo_csi.volume_capabilities import SINGLE_NODE, access_mode
from zfsilo_csi.volumes import VolumeController

from tests.csi.plugin_client import fails, mount
from zfsilod.model.errors import InvalidArgument, Unavailable
from zfsilod.model.names import split_address
from zfsilod.wire import status

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.csi.cluster import Cluster

DIGITS = "1" * 5000
NOTHING = grpc.aio.Metadata()
LIST = csi.ListVolumesRequest()


class ScriptedChannel:
    """A channel to a backend that replies with what a function returns, or fails as it raises."""

    def __init__(self, reply: Callable[[str, Any], Any]) -> None:
        self._reply = reply

    def unary_unary(self, method: str, **_options: Any) -> Any:
        def call(request: Any, *, timeout: float) -> Any:
            del timeout
            return ScriptedCall(self._reply(method.rpartition("/")[2], request))

        return call

    unary_stream = unary_unary


class ScriptedCall:
    def __init__(self, response: Any) -> None:
        self._response = response

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        if isinstance(self._response, Exception):
            raise self._response
        return self._response

    async def initial_metadata(self) -> Any:
        return NOTHING


def error(code: str, details: bytes = b"") -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", details)) if details else NOTHING
    return grpc.aio.AioRpcError(grpc.StatusCode[code], NOTHING, trailing, "text")


def controller(**replies: Callable[[str, Any], Any]) -> VolumeController:
    configs = {name: BackendConfig(socket=name) for name in replies}
    return VolumeController(
        Backends(configs, lambda config: ScriptedChannel(replies[config.socket]))
    )


def call(left_s: float = 10.0) -> CsiCall:
    return CsiCall(SimpleNamespace(time_remaining=lambda: left_s))


def create(name: str = "pvc-1") -> csi.CreateVolumeRequest:
    return csi.CreateVolumeRequest(name=name, volume_capabilities=[mount()])


def volume(volume_id: str, **fields: Any) -> pb.Volume:
    return pb.Volume(name=f"volumes/{volume_id}", id=volume_id, uid="a" * 32, **fields)


async def test_numbers_of_thousands_of_digits(cluster: Cluster) -> None:
    plugin = cluster.plugin
    made = await plugin.create(parameters={"zfs.volblocksize": "16k"})
    with fails("ALREADY_EXISTS", "volblocksize"):
        await plugin.create(parameters={"zfs.volblocksize": DIGITS})
    await plugin.publish(made.volume_id)
    for epoch in (DIGITS, "0", "-1", "1.0", "", "9" * 19, "\x1f1"):
        with fails("FAILED_PRECONDITION", "no valid epoch"):
            await plugin.stage(made.volume_id, {"epoch": epoch})
    with pytest.raises(InvalidArgument):
        split_address(f"server:{DIGITS}")


@pytest.mark.parametrize(
    "path", ["a\nb", "a\x1fb", "../../../etc", "a/../../../x", "x" * 5000, "\0", "./a"]
)
async def test_hostile_paths(cluster: Cluster, path: str) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    context = await plugin.publish(volume_id)
    codes: list[str] = []
    for refused in (plugin.stage(volume_id, context, at=path), plugin.mount(volume_id, path)):
        try:
            await refused
        except grpc.aio.AioRpcError as refusal:
            codes.append(refusal.code().name)
    assert set(codes) <= {"INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION"}
    assert codes or path == "./a"  # the same folder by another name
    mounted = [fact for fact in cluster.facts if fact.startswith(("mount:", "point:"))]
    assert all(fact.partition(":")[2].startswith(f"{plugin.directory}/") for fact in mounted)


async def test_hostile_tokens_and_ids(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for name in ("a", "b", "c"):
        await plugin.create(name=name)
    first = await plugin.controller.ListVolumes(csi.ListVolumesRequest(max_entries=1))
    token = first.next_token
    forged = [token[:-1], token[:8], token + "A", token.swapcase(), "give:" + "é", "give:\x1f"]
    forged += [f"give:{DIGITS}", token.replace("give", "other"), f" {token}", f"give:{token}"]
    for text in forged:
        with fails("ABORTED"):
            await plugin.controller.ListVolumes(csi.ListVolumesRequest(starting_token=text))
        with fails("ABORTED"):
            await plugin.controller.ListSnapshots(csi.ListSnapshotsRequest(starting_token=text))
    with fails("ABORTED"):  # a token of volumes is none of snapshots
        await plugin.controller.ListSnapshots(csi.ListSnapshotsRequest(starting_token=token))
    for odd in ("give/../give/a", "give/a\n", "give/a\x1fb", f"give/{DIGITS}", "give//a", "give/A"):
        await plugin.delete(odd)
        await plugin.unpublish(odd)
        await plugin.unmount(odd)
        for refused in (plugin.get(odd), plugin.publish(odd), plugin.stage(odd, {"epoch": "1"})):
            with fails("NOT_FOUND"):
                await refused
    assert len((await plugin.controller.ListVolumes(LIST)).entries) == 3


async def test_a_message_of_31_mb_and_200_calls_at_once(cluster: Cluster) -> None:
    plugin = cluster.plugin
    large = csi.CreateVolumeRequest(name="large", parameters={"thin": "x" * (31 << 20)})
    with fails("RESOURCE_EXHAUSTED"):
        await plugin.controller.CreateVolume(large)
    lists = [plugin.controller.ListVolumes(LIST, timeout=60) for _call in range(200)]
    assert len(await asyncio.gather(*lists)) == 200


def test_what_is_logged_of_a_request_is_short() -> None:
    noted = call()
    noted.note(node="x" * (4 << 20), path=DIGITS)
    assert {len(text) for text in noted.notes.values()} == {MAX_NOTE_CHARACTERS}


@pytest.mark.parametrize("nodes", [1, 100])
async def test_a_list_of_all_has_an_end(nodes: int) -> None:
    """Thousands of volumes and max_entries 0: pages whose size clients of gRPC accept."""
    ids = [f"v{number:05}" for number in range(5000)]
    publications = [pb.Publication(host=f"hosts/{'n' * 40}{n}") for n in range(nodes)]

    def pages(_method: str, request: Any) -> Any:
        start = int(request.page_token or 0)
        some = [
            volume(one, conditions=["\u20ac" * 1024], publications=publications)
            for one in ids[start : start + request.page_size]
        ]
        after = start + len(some)
        token = str(after) if after < len(ids) else ""
        return pb.ListVolumesResponse(volumes=some, next_page_token=token)

    listed: list[str] = []
    plugin, request = controller(give=pages), csi.ListVolumesRequest()
    for entries in (0, 2**31 - 1):
        listed.clear()
        request = csi.ListVolumesRequest(max_entries=entries)
        while True:
            response = await plugin.ListVolumes(request, call())
            assert len(response.entries) <= pagination.MAX_ITEMS
            assert response.ByteSize() < 4 << 20
            listed += [entry.volume.volume_id for entry in response.entries]
            request.starting_token = response.next_token
            if not response.next_token:
                break
        assert listed == [f"give/{one}" for one in ids]


@pytest.mark.parametrize(
    "page",
    [
        pb.ListVolumesResponse(next_page_token="again"),
        pb.ListVolumesResponse(volumes=[volume(f"v{n}") for n in range(1001)]),
    ],
    ids=("endless", "too long"),
)
async def test_pages_of_a_hostile_backend(page: Any) -> None:
    with pytest.raises(CsiError, match="backend give replied with nonsense"):
        await controller(give=lambda _method, _request: page).ListVolumes(LIST, call())


async def test_pages_without_end_end_with_the_deadline() -> None:
    count = 0

    def pages(_method: str, _request: Any) -> Any:
        nonlocal count
        count += 1
        return pb.ListVolumesResponse(next_page_token=str(count))

    with pytest.raises(CsiError, match="deadline passed"):
        await controller(give=pages).ListVolumes(LIST, call(1.0))


async def test_a_volume_that_is_only_attached_to_a_backend_is_not_the_created_one() -> None:
    """A server that is a node too has volumes of other servers under the same ids."""
    name = id_of("pvc-1")
    labels = {NAME_LABEL: "pvc-1"}
    stored = volume(name, capacity_bytes=1 << 30, labels=labels, mode=pb.MODE_FILESYSTEM, thin=True)
    stored.access_modes.extend(access_mode(mode) for mode in SINGLE_NODE)
    attached = pb.Volume(name=f"volumes/{name}", id=name)

    def node(_method: str, _request: Any) -> Any:
        return attached

    def server(_method: str, _request: Any) -> Any:
        return stored

    for replies in ({"a": node, "b": server}, {"b": node, "a": server}):
        plugin = controller(**replies)
        made = (await plugin.CreateVolume(create(), call())).volume
        there = next(key for key, reply in replies.items() if reply is server)
        assert made.volume_id == f"{there}/{name}"


async def test_a_backend_that_creates_another_volume() -> None:
    def reply(method: str, _request: Any) -> Any:
        if method == "GetVolume":
            return error("NOT_FOUND", _not_found())
        return pb.MutateVolumeResponse(volume=volume("other"))

    with pytest.raises(CsiError, match="it created another volume"):
        await controller(give=reply).CreateVolume(create(), call())


def _not_found() -> bytes:
    from zfsilod.model.errors import NotFound

    _code, _message, trailing = status.to_status(NotFound("no volume"))
    return trailing[0][1]


@pytest.mark.parametrize("details", [b"\xff" * 40, b"\x0a\xff", b"\x1a\x04\x0a\x02x\xff"])
async def test_error_details_that_are_no_status(details: bytes) -> None:
    for method in ("ListVolumes", "CreateVolume"):
        request: Any = LIST if method == "ListVolumes" else create()
        plugin = controller(give=lambda _method, _request: error("UNAVAILABLE", details))
        with pytest.raises(CsiError, match="cannot be reached"):
            await getattr(plugin, method)(request, call())
    assert isinstance(status.from_status(error("UNAVAILABLE", details)), Unavailable)


async def test_every_method_of_a_node_survives_empty_and_odd_requests(cluster: Cluster) -> None:
    """No request of a caller is an internal error."""
    services = csi.DESCRIPTOR.services_by_name
    for service, stub in (
        ("Controller", "controller"),
        ("Node", "node"),
        ("GroupController", "group"),
    ):
        for method in services[service].methods:
            request = GetMessageClass(method.input_type)()
            for odd in ("", "\x1f", "give/\n", "x" * 300):
                for field in method.input_type.fields:
                    if field.type == field.TYPE_STRING and not field.is_repeated:
                        setattr(request, field.name, odd)
                running = getattr(getattr(cluster.plugin, stub), method.name)(request, timeout=20)
                assert (await running.code()).name not in ("INTERNAL", "UNKNOWN"), method.name


def test_the_limits_agree() -> None:
    assert pagination.MAX_ITEMS * (1024 + 300) < 4 << 20
    assert volume_creation.MIN_BYTES <= volume_creation.DEFAULT_BYTES

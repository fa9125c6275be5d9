"""The client of other servers: calls, credentials, and errors."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from zfsilo.v1 import volume_pb2

from tests.api.running import UUID, create, made, publish
from zfsilod.engine.steps.filesystem import Reported
from zfsilod.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from zfsilod.model.records import Host, Publication, Volume
from zfsilod.security.join_file import Access
from zfsilod.wire import storage_server as module
from zfsilod.wire.channel import tls_channel_aio
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    from tests.api.running import Front

ULID = "01jzzzzzzzzzzzzzzzzzzzzzzz"


async def test_fetching_a_connection(front: Front) -> None:
    root = front.root()
    await root.volumes.CreateVolume(create())
    servers = front.service.context.servers
    with pytest.raises(FailedPrecondition) as raised:
        await servers.fetch("give", "data")
    assert (raised.value.reason, raised.value.facts["server"]) == ("NOT_PUBLISHED", "give")
    await servers.publish("give", "data", client_operation=ULID)
    connection, chap = await servers.fetch("give", "data")
    assert chap == front.service.context.store.chap("data/take")
    volume = front.read(lambda txn: txn.get(Volume, "data"))
    assert (connection.serial, connection.size_bytes) == (volume.uid, volume.capacity_bytes)
    assert (connection.epoch, connection.mode) == (1, "FILESYSTEM")
    assert connection.filesystem == volume.filesystem


async def test_tls_is_not_asked_of_an_older_server(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would drop the field, and publish the volume without."""
    await front.root().volumes.CreateVolume(create())
    monkeypatch.setattr("zfsilod.api.rpc.service.FEATURES", ("clones",))
    servers = front.service.context.servers
    with pytest.raises(FailedPrecondition, match="server give has a zfsilod without") as raised:
        await servers.publish("give", "data", client_operation=ULID, transport="NVME", tls=True)
    assert raised.value.reason == "OLDER_VERSION"
    assert front.read(lambda txn: txn.get(Publication, "data/take")) is None


async def test_releasing_reverts_only_the_publication_of_that_operation(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    servers = front.service.context.servers
    await servers.publish("give", "data", client_operation=ULID)
    await servers.release("give", "data", client_operation=ULID[:-1] + "a")
    assert front.read(lambda txn: txn.get(Publication, "data/take")).client_operation == ULID
    await servers.release("give", "data", client_operation=ULID)
    assert front.read(lambda txn: txn.get(Publication, "data/take")) is None
    with pytest.raises(NotFound):
        await servers.release("give", "nothing", client_operation=ULID)


async def test_reporting(front: Front) -> None:
    root = front.root()
    await root.volumes.CreateVolume(create())
    await root.volumes.PublishVolume(publish())
    step = Reported(
        server="give", volume="data", epoch=1, state="FORMATTING", type="ext4", uuid=UUID
    )
    await front.service.context.servers.report(step, ULID)
    filesystem = front.read(lambda txn: txn.get(Volume, "data")).filesystem
    assert (filesystem.state, filesystem.operation, filesystem.host) == ("FORMATTING", ULID, "take")
    await front.service.context.servers.report(step.but(state="READY"), ULID)
    with pytest.raises(FailedPrecondition) as raised:
        await front.service.context.servers.report(step.but(epoch=2), ULID)
    assert raised.value.reason == "STALE_EPOCH"


async def test_new_secrets(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 1)
    for name in ("data", "more"):
        await front.root().volumes.CreateVolume(create(name))
        await front.root().volumes.PublishVolume(publish(name=f"volumes/{name}"))
    servers = front.service.context.servers
    _connection, before = await servers.fetch("give", "data")
    await servers.rotate("give", "data")
    publications = await servers.publications("give")
    assert [
        (publication.id, publication.epoch, publication.rotation) for publication in publications
    ] == [
        ("data/take", 1, 1),
        ("more/take", 1, 0),
    ]
    connection, after = await servers.fetch("give", "data")
    assert (connection.rotation, after == before) == (1, False)


async def test_the_portals_of_a_server_cost_no_secret(front: Front) -> None:
    """They are those of each connection over NVMe, and the call is not an audited one."""
    records: list[object] = []
    front.service.audit.write = lambda *record: records.append(record)
    servers = front.service.context.servers
    portals = await servers.portals("give", "NVME", tls=False)
    assert portals == front.service.context.settings.export.nvme_portals
    assert records == []
    await front.root().volumes.CreateVolume(create())
    await front.root().volumes.PublishVolume(publish(transport=volume_pb2.TRANSPORT_NVME))
    connection, _chap = await servers.fetch("give", "data")
    assert connection.portals == portals


async def test_registering(front: Front) -> None:
    servers = front.servers("other")
    me = Host(id="other", iqn="iqn.2026-01.org.example:o", addresses=("10.0.0.8",))
    await servers.register("give", me)
    assert front.read(lambda txn: txn.get(Host, "other")).addresses == ("10.0.0.8",)
    with pytest.raises(PermissionDenied):
        await servers.register("give", me.but(id="take"))
    with pytest.raises(AlreadyExists):
        await servers.register(
            "give", me.but(iqn=front.read(lambda txn: txn.get(Host, "take")).iqn)
        )
    await servers.close()


async def test_errors_of_a_server_are_raised_by_the_client(front: Front) -> None:
    servers = front.service.context.servers
    with pytest.raises(NotFound) as raised:
        await servers.fetch("give", "nothing")
    assert raised.value.message == "server give has no volume nothing for this host"
    assert raised.value.facts == {"volume": "nothing", "server": "give"}
    with pytest.raises(NotFound) as unknown:
        await servers.fetch("elsewhere", "data")
    assert unknown.value.reason == "NO_SERVER"


async def test_a_server_that_refuses_the_credentials(front: Front) -> None:
    config = front.access(token="zfsilo-nothing")
    servers = StorageServers({"give": config}.get)
    with pytest.raises(Unauthenticated):
        await servers.fetch("give", "data")
    assert "zfsilo-nothing" not in repr(config)
    await servers.close()


async def test_the_error_names_a_server_that_does_not_respond(front: Front) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        servers = front.servers(address=address)
        with pytest.raises(Unavailable) as raised:
            await servers.fetch("give", "data")
        assert f"server give ({address}) did not answer" in raised.value.message
        assert raised.value.facts == {"server": "give", "address": address}
        await servers.close()


async def test_a_server_that_exceeds_the_deadline_is_unavailable(
    front: Front, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "CALL_DEADLINE_S", 0.6)
    await front.root().volumes.CreateVolume(create())
    front.fixture.launcher.gate.clear()
    with pytest.raises(Unavailable) as raised:
        await front.service.context.servers.publish("give", "data", client_operation=ULID)
    assert raised.value.reason == "SERVER_UNAVAILABLE"


@pytest.mark.parametrize(
    ("portals", "address", "expected"),
    [
        (("0.0.0.0:3260",), "127.0.0.1:7450", ("127.0.0.1:3260",)),
        (("[::]:3260",), "[::1]:7450", ("[::1]:3260",)),
        (("[::]:3261",), "127.0.0.1:7450", ("127.0.0.1:3261",)),
        (("0.0.0.0:3260", "[::]:3260"), "127.0.0.1:7450", ("127.0.0.1:3260",)),
        (("10.0.0.1:3260", "[fd00::1]:3260"), "give:7450", ("10.0.0.1:3260", "[fd00::1]:3260")),
        (("0.0.0.0:3260",), "localhost:7450", ("127.0.0.1:3260",)),
    ],
)
async def test_wildcard_portals_become_the_address_of_the_server(
    portals: tuple[str, ...], address: str, expected: tuple[str, ...]
) -> None:
    config = Access(name="give", address=address, tls_name="", authority="")
    servers = StorageServers({"give": config}.get)
    assert await servers.usable_portals("give", portals) == expected


async def test_an_address_in_use_stays_while_the_name_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server changes the order at each answer; each change would move the attachments."""
    answers: list[tuple[str, ...]] = []

    async def answer(*_name: object, **_hints: object) -> list[Any]:
        return [(socket.AF_INET, 0, 0, "", (address, 0)) for address in answers.pop()]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
    config = Access(name="give", address="give.test:7450", tls_name="", authority="")
    recorded: list[str] = []
    servers = StorageServers({"give": config}.get, recorded=lambda _server: recorded)

    async def portal(*addresses: str) -> str:
        answers.append(addresses)
        (portal,) = await servers.usable_portals("give", ("0.0.0.0:4420",))
        return portal

    one, two = "10.0.0.1", "10.0.0.2"
    assert await portal(two, one) == f"{two}:4420"
    recorded.append(f"{two}:4420")
    assert await portal(one, two) == await portal(two, one) == f"{two}:4420"
    recorded.append(f"{one}:4420")
    assert await portal(two, one) == await portal(one, two), "of two in use, always the same one"
    assert await portal("10.0.0.3") == "10.0.0.3:4420", "the server has moved"


async def test_a_name_that_does_not_resolve() -> None:
    config = Access(name="give", address="nothing.invalid:7450", tls_name="", authority="")
    with pytest.raises(Unavailable):
        await StorageServers({"give": config}.get).usable_portals("give", ("0.0.0.0:3260",))


async def test_a_changed_join_file_is_used_at_the_next_call(front: Front) -> None:
    configs: dict[str, Access] = {}
    servers = StorageServers(configs.get)
    with pytest.raises(NotFound):
        await servers.fetch("give", "data")
    configs["give"] = front.access(token="old")
    with pytest.raises(Unauthenticated):
        await servers.fetch("give", "data")
    configs["give"] = front.certified("host", "take")
    with pytest.raises(NotFound):
        await servers.fetch("give", "data")
    await servers.close()


@pytest.mark.parametrize(("resets", "reached"), [(1, True), (2, False)])
async def test_a_stale_connection_is_replaced_once(
    front: Front, resets: int, reached: bool
) -> None:
    left = resets

    async def method(request: str, *, timeout: float, metadata: object) -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            nothing = grpc.aio.Metadata()
            code = grpc.StatusCode.UNAVAILABLE
            raise grpc.aio.AioRpcError(code, nothing, nothing, "Stream removed")
        return request

    call = front.servers("take").call("give", method, "asked")
    if reached:
        assert await call == "asked"
        return
    with pytest.raises(Unavailable, match="Stream removed"):
        await call
    assert left == 0, "called twice, and no more"


async def test_the_channel_of_an_old_file_is_closed(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open channel would connect with the old credentials again, every 5 s, for ever."""
    closed: list[str] = []

    def watched(access: Access) -> Any:
        channel = tls_channel_aio(access)
        close = channel.close

        async def noted(grace: float | None = None) -> None:
            closed.append(access.authority)
            await close(grace)

        channel.close = noted
        return channel

    monkeypatch.setattr(module, "tls_channel_aio", watched)
    known = {"give": front.certified("host", "take")}
    old = known["give"].authority = made("other").certificate_pem.decode()
    servers = StorageServers(known.get)
    with pytest.raises(Unauthenticated, match="known authority did not issue"):
        await servers.publications("give")
    assert "known authority did not issue" in servers.problem("give")
    known["give"] = front.certified("host", "take")
    assert await servers.publications("give") == []
    assert (closed, servers.problem("give")) == ([old], "")
    await servers.close()

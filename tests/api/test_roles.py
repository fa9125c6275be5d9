"""Authorization: the table of roles, its enforcement, and the view of a host."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.api import annotations_pb2
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from zfsilo.v1 import host_pb2, service_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.http_client import local, remote
from tests.api.running import DATA, TAKE, refused
from tests.channel import unix_channel_aio
from zfsilod.api.http.routes import VARIABLE
from zfsilod.api.rpc.server import HEALTH, REFLECTION, REFLECTION_V1
from zfsilod.ctl import command_table
from zfsilod.gateway.relay import PlainEnd, RelayedConnection
from zfsilod.gateway.sockets import listen_unix
from zfsilod.model.errors import InvalidArgument, PermissionDenied
from zfsilod.model.identity import Caller, Identity, Peer
from zfsilod.security import certificates
from zfsilod.security.authentication import new_token
from zfsilod.security.authorization import LOCAL, ROLES, as_markdown, authorize
from zfsilod.security.certificates import USER_ROLES
from zfsilod.security.join_file import Access
from zfsilod.wire.channel import tls_channel_aio
from zfsilod.wire.stub import SERVICES, Api, Stub, path_of

if TYPE_CHECKING:
    from tests.api.running import Front

METHODS = {path_of(method): method for s in (*SERVICES, HEALTH, REFLECTION) for method in s.methods}
OPS = Identity(kind="user", id="ops", role="admin")
CLIENT_METHODS = (
    *("Attach", "Detach", "Connect", "Disconnect"),
    *("Stage", "Unstage", "Mount", "Unmount", "Grow"),
)
OTHER_IQN = "iqn.2026-01.org.example:b"


def test_the_table_has_exactly_the_methods() -> None:
    assert set(ROLES) == set(METHODS)


def test_administrators_may_call_everything() -> None:
    assert all("admin" in roles for roles in ROLES.values())


def test_readers_only_read() -> None:
    reading = (
        "Get",
        "Renew",
        "List",
        "Watch",
        "Wait",
        "Stats",
        "Probe",
        "Check",
        "ServerReflectionInfo",
    )
    for path, roles in ROLES.items():
        assert ("reader" not in roles) or path.rpartition("/")[2].startswith(reading), path


def test_no_remote_role_may_change_a_client() -> None:
    family = [
        path for path in ROLES if path.rpartition("/")[2] in [f"{n}Volume" for n in CLIENT_METHODS]
    ]
    assert len(family) == len(CLIENT_METHODS)
    assert all(ROLES[path] == ("admin", "node") for path in family)


def test_a_controller_has_no_secrets_and_changes_no_hosts() -> None:
    refused = ("FetchConnection", "ReportFilesystem", "RegisterHost", "CreateHost", "UpdateHost")
    assert all("controller" not in roles for path, roles in ROLES.items() if path.endswith(refused))


def test_the_roles_of_tokens_are_those_of_zfsiloctl() -> None:
    assert command_table.ROLES == USER_ROLES


def test_the_documentation_has_the_table() -> None:
    page = Path(__file__).parents[2] / "docs/security.md"
    assert as_markdown() in page.read_text()


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(PermissionDenied):
        authorize(Caller(role="admin", subject="x", origin="y"), "/zfsilo.v1.Service/Other")


# The identities and their roles; or the code of every call of an identity without a role.
IDENTITIES = {
    "admin": "admin",
    "controller": "controller",
    "host": "host",
    "other host": "host",
    "reader": "reader",
    "token of a controller": "controller",
    "node": "node",
    "uid 0": "admin",
    "group zfsilo": "admin",
    "another uid": grpc.StatusCode.PERMISSION_DENIED,
    "another uid at the CSI socket": "node",
    "revoked": grpc.StatusCode.UNAUTHENTICATED,
    "no certificate": grpc.StatusCode.UNAUTHENTICATED,
    "bad token": grpc.StatusCode.UNAUTHENTICATED,
    "ended token": grpc.StatusCode.UNAUTHENTICATED,
    "expired": grpc.StatusCode.UNAVAILABLE,
    "unknown authority": grpc.StatusCode.UNAVAILABLE,
}
GROUP = 4242


@pytest.mark.parametrize("who", IDENTITIES)
async def test_the_table_is_enforced(front: Front, who: str) -> None:
    channel = channel_of(front, who)
    expected = IDENTITIES[who]
    is_local = who.startswith(("node", "uid", "group", "another"))
    for path, method in METHODS.items():
        code = await code_of(channel, path, method)
        if isinstance(expected, grpc.StatusCode):
            if code == grpc.StatusCode.UNAVAILABLE and expected == grpc.StatusCode.UNAUTHENTICATED:
                # The gateway closes the connection, here during the next call.
                code = await code_of(channel, path, method)
            assert code == expected, f"{path} answers {code} to {who}"
            continue
        may = expected in ROLES[path] and (is_local or path not in LOCAL)
        refused_by_role = code == grpc.StatusCode.PERMISSION_DENIED
        refused_by_role &= not path.endswith("RenewCertificate")  # which asks for a certificate
        assert refused_by_role != may or path.endswith("RenewCertificate"), f"{path}: {code}"


@pytest.mark.parametrize("who", IDENTITIES)
async def test_http_refuses_whom_grpc_refuses(front: Front, who: str) -> None:
    way, expected = way_of(front, who), IDENTITIES[who]
    is_local = not isinstance(way, Access)
    for path, method in METHODS.items():
        if path.startswith("/grpc."):
            continue
        for verb, target in urls_of(method):
            status, reason = await http_status(front, way, verb, target)
            if isinstance(expected, grpc.StatusCode):
                assert status == REFUSED[expected], f"{verb} {target} answers {status} to {who}"
                continue
            may = expected in ROLES[path] and (is_local or path not in LOCAL)
            by_role = reason in ("ROLE", "LOCAL")
            assert by_role != may, f"{verb} {target}: {status} {reason}"
            assert (status == 403) >= by_role


REFUSED = {
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.UNAVAILABLE: 0,
}


def urls_of(method: Any) -> list[tuple[str, str]]:
    """Return verb and URL of a method, of a resource whose id is not valid."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    urls = []
    for binding in (rule, *rule.additional_bindings):
        verb = binding.WhichOneof("pattern")
        template = getattr(binding, verb)
        urls.append((verb.upper(), VARIABLE.sub(lambda match: f"{match[2]}/%20", template)))
    return urls


async def http_status(front: Front, way: Access | Path, verb: str, target: str) -> tuple[int, str]:
    """Make an empty request, and return status and reason; 0: TLS has ended the connection."""
    body: Any = None if verb in ("GET", "DELETE") else {}
    try:
        door = remote(front, way, way.token) if isinstance(way, Access) else local(way)
        async with door as client:
            response = await client.ask(verb, target, body, zfsilo_timeout="0.5")
    except (ConnectionError, ssl.SSLError):
        return 0, ""
    return response.status, "" if response.status == 200 else response.reason


def channel_of(front: Front, who: str) -> Any:
    """Return the channel of an entry of IDENTITIES."""
    way = way_of(front, who)
    return front.channel_as(way) if isinstance(way, Access) else front.keep(unix_channel_aio(way))


def way_of(front: Front, who: str) -> Access | Path:
    """Return the join file or the socket with which an entry of IDENTITIES calls."""
    match who:
        case "admin" | "controller" | "reader" | "host":
            return front.certified(who, "take")
        case "other host":
            return front.certified("host", "other")
        case "revoked" | "expired" | "unknown authority":
            by, days = ("other" if who.startswith("unknown") else "ca"), int(who != "expired")
            access = front.certified("admin", "ops", days=days, by=by)
            record = certificates.record_of(access.certificate.encode(), OPS)
            front.write(lambda txn: txn.put(record.but(revoked_at=int(who == "revoked"))))
            return access
        case "token of a controller" | "ended token":
            token, text = new_token("controller", "csi", lasts_s=60)
            front.write(lambda txn: txn.put(token.but(expires_at=int(who == "ended token"))))
            return front.access(token=text)
        case "bad token":
            return front.access(token="zfsilo-nothing")
        case "no certificate":
            return front.access()
        case "uid 0":
            return front.path
        case "node":
            return front.node_path
    return of_user(front, who)


def of_user(front: Front, who: str) -> Path:
    """Return a socket that connects as another user: the kernel reports the uid at connect(2)."""
    if os.getuid() != 0:
        pytest.skip("becomes other users")
    path = front.node_path if "CSI" in who else front.path
    path.chmod(0o666)
    path.parent.chmod(0o755)
    front.server.callers.group = GROUP
    relay = listen_unix(path.with_name("relay.sock"))

    def accept() -> None:
        client, _address = relay.accept()
        far = socket.socket(socket.AF_UNIX)
        os.setegid(GROUP if who == "group zfsilo" else 65534)
        os.seteuid(65534)
        try:
            far.connect(str(path))
        finally:
            os.seteuid(0)
            os.setegid(0)
        far.settimeout(0)
        peer, ends = Peer(kind="unix", address=""), (PlainEnd(client), PlainEnd(far))
        RelayedConnection(peer, *ends, closed=lambda _why: None)

    loop = asyncio.get_running_loop()
    loop.add_reader(relay, accept)
    front.relays += [partial(loop.remove_reader, relay), relay.close]
    return path.with_name("relay.sock")


async def code_of(channel: Any, path: str, method: Any) -> grpc.StatusCode:
    """Call a method with an empty request, and return the status code."""
    request = GetMessageClass(method.input_type)()
    parse = GetMessageClass(method.output_type).FromString
    if method.client_streaming:
        call = channel.stream_stream(path, type(request).SerializeToString, parse)(iter([request]))
    elif method.server_streaming:
        call = channel.unary_stream(path, type(request).SerializeToString, parse)(request)
    else:
        call = channel.unary_unary(path, type(request).SerializeToString, parse)(request)
        return await call.code()
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    call.cancel()
    return grpc.StatusCode.OK


async def test_callers_without_credentials_are_refused(front: Front) -> None:
    channel = tls_channel_aio(front.access())
    front.channels.append(channel)
    for path, method in METHODS.items():
        code = await code_of(channel, path, method)
        if code == grpc.StatusCode.UNAVAILABLE:  # closed after the 16th failure
            code = await code_of(channel, path, method)
        assert code == grpc.StatusCode.UNAUTHENTICATED, path
    with refused("UNAUTHENTICATED", "NO_IDENTITY"):
        await Api(channel).volumes.GetVolume(pb.GetVolumeRequest(name=DATA))


async def test_invalid_tokens(front: Front) -> None:
    right = front.token("admin", "ops")
    wrong = [
        right[:-1] + ("0" if right[-1] != "0" else "1"),
        right[:-1],
        right + "0",
        "zfsilo-",
        "x",
        right.upper(),
        new_token("admin", "ops")[1],
        "zfsilo-" + "0" * 26 + "-" + "0" * 64,
    ]
    for token in wrong:
        with refused("UNAUTHENTICATED", "BAD_TOKEN") as refusal:
            await front.bearer(token).hosts.GetHost(host_pb2.GetHostRequest(name=TAKE))
        assert token not in str(refusal.raw) or token == "x"
    assert (
        await front.bearer(right).hosts.GetHost(host_pb2.GetHostRequest(name=TAKE))
    ).name == TAKE


@pytest.mark.parametrize("header", ["Bearer ", "Basic x", "bearer {}", "{}", "Bearer  {}"])
async def test_invalid_authorization_headers(front: Front, header: str) -> None:
    channel = tls_channel_aio(front.access())
    front.channels.append(channel)
    text = header.format(front.token("admin", "ops"))
    with refused("UNAUTHENTICATED", "BAD_TOKEN"):
        await Api(channel).volumes.GetVolume(
            pb.GetVolumeRequest(name=DATA), metadata=(("authorization", text),)
        )


async def test_two_tokens_are_refused(front: Front) -> None:
    api = front.bearer(front.token("admin", "ops"))
    more = (("authorization", f"Bearer {front.token('admin', 'ops')}"),)
    with refused("UNAUTHENTICATED", "BAD_TOKEN"):
        await api.volumes.GetVolume(pb.GetVolumeRequest(name=DATA), metadata=more)


async def test_a_revoked_token_is_refused_on_an_open_connection(front: Front) -> None:
    api = front.bearer(front.token("reader", "ops"))
    await api.volumes.ListVolumes(pb.ListVolumesRequest())
    from zfsilod.model.records import Token

    def revoke(txn: Any) -> None:
        for token in list(txn.scan(Token)):
            txn.drop("token", token.id)

    front.write(revoke)
    with refused("UNAUTHENTICATED", "BAD_TOKEN"):
        await api.volumes.ListVolumes(pb.ListVolumesRequest())


def test_only_the_digest_of_a_token_is_stored() -> None:
    token, text = new_token("reader", "mon")
    assert text not in repr(token)
    assert text.rpartition("-")[2] not in repr(token)
    with pytest.raises(InvalidArgument):
        new_token("host", "x")
    with pytest.raises(InvalidArgument):
        new_token("reader", "No Name")


async def test_a_token_is_ignored_on_the_unix_socket(front: Front) -> None:
    api = front.root()
    info = await api.service.GetServerInfo(
        service_pb2.GetServerInfoRequest(), metadata=(("authorization", "Bearer nonsense"),)
    )
    assert info.caller == "uid 0 (unix)"


async def test_callers_are_named_with_their_token_and_address(front: Front) -> None:
    info = await front.bearer(front.token("reader", "mon")).service.GetServerInfo(
        service_pb2.GetServerInfoRequest()
    )
    assert info.caller.startswith("reader mon (token 01")
    assert info.caller.endswith(", 127.0.0.1)")


async def test_a_token_expires(front: Front, monkeypatch: Any) -> None:
    token, text = new_token("reader", "mon", lasts_s=60)
    front.write(lambda txn: txn.put(token))
    api = front.bearer(text)
    await api.volumes.ListVolumes(pb.ListVolumesRequest())
    monkeypatch.setattr("zfsilod.security.authentication.time.time", lambda: token.created_at + 61)
    with refused("UNAUTHENTICATED", "BAD_TOKEN"):
        await api.volumes.ListVolumes(pb.ListVolumesRequest())


ASK = """
import os, sys, grpc, grpc._channel  # now: others may not read root's files
path, uid, gid, groups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
channel = grpc.insecure_channel("unix:" + path)
call = channel.unary_unary("/zfsilo.v1.Service/GetServerInfo")
try:
    print("OK", call(b"", timeout=10).decode(errors="replace"))
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""


async def ask_as(front: Front, uid: int, gid: int, groups: list[int]) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        ASK,
        str(front.path),
        str(uid),
        str(gid),
        str(groups),
        stdout=subprocess.PIPE,
    )
    out, _err = await process.communicate()
    return out.decode()


@pytest.mark.skipif(os.getuid() != 0, reason="becomes other users")
async def test_other_users_need_the_group(front: Front) -> None:
    front.path.parent.chmod(0o755)
    front.server.callers.group = 4242
    assert "PERMISSION_DENIED uid 65534 is neither root nor in the group zfsilo" in await ask_as(
        front, 65534, 65534, []
    )
    assert "uid 65534 (unix)" in await ask_as(front, 65534, 4242, [])
    assert "uid 65534 (unix)" in await ask_as(front, 65534, 65534, [7, 4242])
    assert "PERMISSION_DENIED" in await ask_as(front, 65534, 65534, [7])


# Health and reflection


async def test_health_and_reflection_for_readers(front: Front) -> None:
    front.role("reader", "monitor")
    health = Stub(front.channels[-1], HEALTH)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "zfsilo.v1.VolumeService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == serving
    with refused("NOT_FOUND"):
        await health.Check(health_pb2.HealthCheckRequest(service="other"))
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == serving
    watch.cancel()
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    for service in (REFLECTION_V1, REFLECTION.full_name):
        call = reflect(front, service)
        async for answer in call(iter([asked])):
            names = {service.name for service in answer.list_services_response.service}
            assert {s.full_name for s in (*SERVICES, HEALTH, REFLECTION)} <= names


async def test_reflection_needs_a_role(front: Front) -> None:
    front.as_(front.certified("host", "take"))
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    for service in (REFLECTION_V1, REFLECTION.full_name):
        with refused("PERMISSION_DENIED"):
            await reflect(front, service)(iter([asked])).read()


def reflect(front: Front, service: str) -> Any:
    """Return ServerReflectionInfo of the newest channel."""
    return front.channels[-1].stream_stream(
        f"/{service}/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

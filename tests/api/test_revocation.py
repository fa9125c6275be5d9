"""Revocation and renewal, imported identities, and the machine that a host id is bound to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import host_pb2, service_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import DATA, TAKE, create, made, publish, refused
from tests.api.test_certs import certificate_with
from zfsilod.model.errors import NotFound, PermissionDenied, Unauthenticated
from zfsilod.model.records import Host, Issued, Publication, Revocation
from zfsilod.requests.volumes import UpdateVolume
from zfsilod.security import certificates, credentials
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    from tests.api.running import Front
    from zfsilod.security.join_file import Access
    from zfsilod.wire.stub import Api

FIRST, SECOND = "1" * 32, "2" * 32
FETCH = pb.FetchConnectionRequest(name=DATA)


async def hello(api: Api) -> str:
    info = await api.service.GetServerInfo(service_pb2.GetServerInfoRequest())
    return str(info.caller)


def issued(front: Front, role: str, subject: str) -> Access:
    """Return a join file with a certificate that is recorded, as by `zfsiloctl pki issue`."""
    access = front.certified(role, subject)
    pem = access.certificate.encode()
    identity = certificates.identify_pem(pem, made("ca").certificate_pem).identity
    front.write(lambda txn: txn.put(certificates.record_of(pem, identity)))
    return access


def trust_other(front: Front) -> None:
    front.tls.files.trusted.mkdir(exist_ok=True)
    (front.tls.files.trusted / "other.pem").write_bytes(made("other").certificate_pem)


def revoke(front: Front, name: str) -> list[str]:
    return front.write(lambda txn: credentials.revoke(txn, name, 1, unknown=True))  # type: ignore[no-any-return]


async def test_renewals_in_flight_do_not_survive_a_revocation(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    stolen = issued(front, "host", "take")
    sign, loop, started = certificates.sign_request, asyncio.get_running_loop(), asyncio.Event()

    def sign_late(*arguments: Any) -> bytes:
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(revoked.wait(), loop).result(10)
        return sign(*arguments)

    revoked = asyncio.Event()
    monkeypatch.setattr(certificates, "sign_request", sign_late)
    requests = [certificates.make_request() for _one in range(4)]
    api = front.as_(stolen)

    async def renew(request: Any) -> None:
        with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
            await api.service.RenewCertificate(
                service_pb2.RenewCertificateRequest(request=request.certificate_pem.decode())
            )

    renewing = [asyncio.create_task(renew(request)) for request in requests]
    await started.wait()
    assert len(revoke(front, "host/take")) == 2
    revoked.set()
    await asyncio.gather(*renewing)
    assert front.read(lambda txn: [one.revoked_at for one in txn.scan(Issued)]) == [1]


async def test_a_revocation_covers_certificates_without_a_record(front: Front) -> None:
    lost, other = front.certified("host", "take"), front.certified("host", "other")
    assert await hello(front.as_(lost))
    assert revoke(front, "host/take") == ["identity host/take"]
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await hello(front.as_(lost))
    assert await hello(front.as_(other))
    assert await hello(front.as_(issued(front, "host", "take"))), "issued after the revocation"
    revoke(front, "host/take")
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await hello(front.as_(lost))


async def test_a_user_is_not_a_host_of_that_name(front: Front) -> None:
    revoke(front, "host/take")
    assert await hello(front.role("reader", "take"))
    revoke(front, "user/take")
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await hello(front.role("reader", "take"))


async def test_certificates_of_imported_authorities_can_be_revoked(front: Front) -> None:
    trust_other(front)
    one, two = (front.certified("host", "far", by="other") for _one in range(2))
    own = front.certified("host", "far")
    certified = certificates.identify_pem(one.certificate.encode(), b"")
    revoke(front, certified.fingerprint)
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await hello(front.as_(one))
    assert await hello(front.as_(two))
    assert revoke(front, "imported/host/far") == ["identity imported/host/far"]
    for late in (two, front.certified("host", "far", by="other")):  # it goes on issuing
        with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
            await hello(front.as_(late))
    assert await hello(front.as_(own))
    front.write(lambda txn: credentials.withdraw(txn, "imported/host/far"))
    assert await hello(front.as_(two))
    with pytest.raises(NotFound):
        front.write(lambda txn: credentials.withdraw(txn, "host/far"))


@pytest.mark.parametrize("name", ["abc", "host/*", "host/a\nb", "imported/role/x", "f" * 63])
async def test_what_is_no_identity_cannot_be_revoked(front: Front, name: str) -> None:
    with pytest.raises(NotFound):
        revoke(front, name)
    assert front.read(lambda txn: list(txn.scan(Revocation))) == []


@pytest.mark.parametrize(
    "uris",
    [
        ["zfsilo://host/*"],
        ["zfsilo://host/take\n"],
        ["zfsilo://host/take%0a"],
        ["zfsilo://host/Take"],
        ["zfsilo://host/a/b"],
        ["zfsilo://host/a..service"],
        ["ZFSILO://host/take"],
        ["zfsilo://HOST/take"],
        ["zfsilo://host/take", "ZFSILO://host/other"],
        ["zfsilo://host/take", " zfsilo://host/other"],
        ["zfsilo:host/take", "zfsilo://host/take"],
        ["zfsilo://user/*", "zfsilo://role/admin"],
        ["zfsilo://user/a%2fb", "zfsilo://role/admin"],
        ["zfsilo://user/" + "a" * 129],
    ],
    ids=str,
)
def test_an_id_in_a_certificate_is_exact(uris: list[str]) -> None:
    with pytest.raises(Unauthenticated):
        certificates.identify_pem(certificate_with(uris), made("ca").certificate_pem)


async def published(front: Front) -> Any:
    root = front.root()
    await root.volumes.CreateVolume(create())
    await root.volumes.PublishVolume(publish())
    return root


async def test_an_imported_identity_is_not_our_own_of_that_name(front: Front) -> None:
    await published(front)
    trust_other(front)
    ours, theirs = issued(front, "host", "take"), front.certified("host", "take", by="other")
    with refused("PERMISSION_DENIED", "OTHER_AUTHORITY"):
        await front.as_(theirs).volumes.FetchConnection(FETCH)
    await front.as_(ours).volumes.FetchConnection(FETCH)
    assert front.read(lambda txn: txn.get(Host, "take")).authority == "OWN"
    for call, message in (
        (front.as_(theirs).volumes.UnpublishVolume, pb.UnpublishVolumeRequest(name=DATA)),
        (front.as_(theirs).hosts.RegisterHost, host_pb2.RegisterHostRequest()),
    ):
        with refused("PERMISSION_DENIED", "OTHER_AUTHORITY"):
            await call(message)


async def test_our_own_identity_is_not_an_imported_one_of_that_name(front: Front) -> None:
    trust_other(front)
    theirs = front.as_(front.certified("host", "far", by="other"))
    host = host_pb2.Host(iqn="iqn.2026-01.org.example:far")
    answer = await theirs.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    assert answer.host.authority == "IMPORTED"
    with refused("PERMISSION_DENIED", "OTHER_AUTHORITY") as refusal:
        await front.role("host", "far").hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    assert "zfsiloctl host delete far" in refusal.error.message
    request = another_machine("hosts/far")
    assert (await front.root().hosts.UpdateHost(request)).host.authority == "IMPORTED"
    await theirs.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    await front.root().hosts.DeleteHost(host_pb2.DeleteHostRequest(name="hosts/far"))
    ours = front.as_(issued(front, "host", "far"))
    await ours.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    await front.root().hosts.DeleteHost(host_pb2.DeleteHostRequest(name="hosts/far"))
    with refused("PERMISSION_DENIED", "OTHER_AUTHORITY"):
        await theirs.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    revoke(front, "host/far")
    await theirs.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))


@pytest.mark.parametrize("how", ["certificate", "token"])
async def test_a_caller_that_is_revoked_meanwhile_changes_nothing(
    front: Front, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    await published(front)
    token = front.token("controller", "csi")
    api = front.bearer(token) if how == "token" else front.role("controller", "csi")

    async def gather(_self: Any, _context: Any, _operation_id: str) -> None:
        if how == "certificate":
            revoke(front, "user/csi")
        else:
            front.write(lambda txn: txn.drop("token", token.split("-")[1]))

    monkeypatch.setattr(UpdateVolume, "gather", gather)
    update = pb.UpdateVolumeRequest(volume=pb.Volume(name=DATA, hosts=["evil"]))
    update.update_mask.paths.append("hosts")
    with refused("UNAUTHENTICATED"):
        await api.volumes.UpdateVolume(update)


def clients(front: Front, access: Access, machine: str) -> StorageServers:
    return StorageServers({"give": access}.get, machine)


async def test_a_second_machine_under_one_host_id_is_refused(front: Front) -> None:
    root = await published(front)
    access = issued(front, "host", "take")
    first, clone = clients(front, access, FIRST), clients(front, access, SECOND)
    silent = clients(front, access, "")
    await first.fetch("give", "data")
    assert front.read(lambda txn: txn.get(Host, "take")).machine == FIRST
    host = Host(id="take")
    for call in (
        clone.fetch("give", "data"),
        clone.register("give", host),
        clone.release("give", "data", client_operation=""),
        clone.publish("give", "data", client_operation=""),
        clone.rotate("give", "data"),
        silent.fetch("give", "data"),
        silent.register("give", host),
    ):
        with pytest.raises(PermissionDenied, match="zfsiloctl host update take --new-machine") as e:
            await call
        assert e.value.reason == "OTHER_MACHINE"
    await first.register("give", host)
    shown = await root.hosts.GetHost(host_pb2.GetHostRequest(name=TAKE))
    assert (shown.machine, shown.authority) == (FIRST, "OWN")
    for servers in (first, clone, silent):
        await servers.close()


def another_machine(name: str = TAKE) -> host_pb2.UpdateHostRequest:
    request = host_pb2.UpdateHostRequest(host=host_pb2.Host(name=name))
    request.update_mask.paths.append("machine")
    return request


async def test_a_machine_is_replaced(front: Front) -> None:
    root = await published(front)
    stolen = issued(front, "host", "take")
    first = clients(front, stolen, FIRST)
    _connection, chap = await first.fetch("give", "data")
    await root.hosts.UpdateHost(another_machine())
    assert front.read(lambda txn: txn.get(Host, "take")).machine == ""
    with pytest.raises(Unauthenticated):
        await first.fetch("give", "data")
    second = clients(front, issued(front, "host", "take"), SECOND)
    connection, new_chap = await second.fetch("give", "data")
    assert new_chap.password != chap.password
    assert connection.rotation == 1
    for servers in (first, second):
        await servers.close()


async def test_a_machine_with_a_session_is_not_replaced(front: Front) -> None:
    root = await published(front)
    await root.volumes.ConnectVolume(pb.ConnectVolumeRequest(server="give", volume="data"))
    before = front.read(lambda txn: list(txn.scan(Publication)))
    with refused("FAILED_PRECONDITION", "SESSION_LIVE"):
        await root.hosts.UpdateHost(another_machine())
    assert front.read(lambda txn: list(txn.scan(Publication))) == before
    assert front.read(lambda txn: list(txn.scan(Revocation))) == []
    with refused("INVALID_ARGUMENT", "BAD_MASK"):
        forged = another_machine()
        forged.host.machine = SECOND
        await root.hosts.UpdateHost(forged)

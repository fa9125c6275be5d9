"""Authentication by certificates: revocation, expiry, renewal, imported authorities."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfsilo.v1 import host_pb2, operation_pb2, service_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import TAKE, create, made, refused
from zfsilod.model.identity import Identity
from zfsilod.model.records import Issued
from zfsilod.security import certificates, join_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front
    from zfsilod.wire.stub import Api


async def hello(api: Api) -> str:
    info = await api.service.GetServerInfo(service_pb2.GetServerInfoRequest())
    return str(info.caller)


async def test_callers_are_named_with_certificate_and_address(front: Front) -> None:
    assert (await hello(front.role("host", "take"))).startswith("host take (certificate ")
    assert (await hello(front.role("controller", "csi"))).endswith(", 127.0.0.1)")


async def test_invalid_certificates_are_refused(front: Front) -> None:
    other = front.certified("admin", "ops", by="other")  # of an authority that is unknown here
    ended = front.certified("admin", "ops", days=0)
    for worthless in (other, ended):
        with refused("UNAVAILABLE"):
            await hello(front.as_(worthless))


async def test_another_server_is_not_trusted(front: Front) -> None:
    foreign = front.certified("host", "take")
    foreign.authority = made("other").certificate_pem.decode()
    misled = front.certified("host", "take")
    misled.tls_name = "other.zfsilo"  # a host of the same authority, but not the one that is meant
    for wrong in (foreign, misled):
        with refused("UNAVAILABLE"):
            await hello(front.as_(wrong))


async def test_a_user_certificate_is_not_a_server_certificate(front: Front) -> None:
    operator = Identity(kind="user", id="ops", role="admin")
    front.tls.files.write_host(certificates.issue(made("ca"), operator, ("give.zfsilo",)))
    with refused("UNAVAILABLE"):
        await hello(front.role("admin", "ops"))


def revoke(front: Front, wanted: join_file.Access) -> None:
    pem = wanted.certificate.encode()
    record = certificates.record_of(
        pem, certificates.identify_pem(pem, made("ca").certificate_pem).identity
    )
    front.write(lambda txn: txn.put(record.but(revoked_at=1)))


async def test_revocation_takes_effect_on_an_open_connection(front: Front) -> None:
    stolen, kept = front.certified("host", "take"), front.certified("host", "take")
    thief, owner = front.as_(stolen), front.as_(kept)
    await hello(thief)
    await hello(owner)
    assert front.gateway.connections == 2
    revoke(front, stolen)
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await hello(thief)
    await hello(owner)
    await front.fixture.service.executor.wait_for_change(
        0.5
    )  # the gateway closes it after the response
    assert front.gateway.connections == 1


async def test_a_revoked_watcher_receives_nothing_more(front: Front) -> None:
    stolen = front.certified("reader", "mon")
    watch = front.as_(stolen).operations.WatchOperations(operation_pb2.WatchOperationsRequest())
    await watch.read()
    revoke(front, stolen)
    await front.root().volumes.CreateVolume(create())
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await watch.read()


async def test_a_revocation_ends_an_idle_stream(front: Front, monkeypatch: Any) -> None:
    monkeypatch.setattr("zfsilod.api.rpc.guard.RECHECK_S", 0.05)
    stolen = front.certified("reader", "mon")
    request = health_pb2.HealthCheckRequest(service="zfsilo.v1.Service")
    health = health_pb2_grpc.HealthStub(front.channel_as(stolen)).Watch(request)
    operations = front.as_(stolen).operations
    watch = operations.WatchOperations(operation_pb2.WatchOperationsRequest())
    assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
    await watch.read()
    revoke(front, stolen)
    for stream in (health, watch):
        with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
            await stream.read()


async def test_a_certificate_that_expires_during_a_connection(
    front: Front, monkeypatch: Any
) -> None:
    api = front.role("reader", "mon")
    await hello(api)
    later = dt.datetime.now(dt.UTC).timestamp() + 86400 * 2
    monkeypatch.setattr("zfsilod.security.authentication.time.time", lambda: later)
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await hello(api)


async def test_a_renewed_certificate_needs_no_restart(front: Front) -> None:
    before = front.certified("host", "take")
    assert await hello(front.as_(before))
    request = certificates.make_request()
    answer = await front.as_(before).service.RenewCertificate(
        service_pb2.RenewCertificateRequest(request=request.certificate_pem.decode())
    )
    after = front.access(certificate=answer.certificate, key=request.key_pem.decode())
    assert (await hello(front.as_(after))).startswith("host take (certificate ")
    records = front.read(lambda txn: [issued.subject for issued in txn.scan(Issued)])
    assert records == ["host/take"]
    front.tls.files.write_host(
        certificates.issue(made("ca"), Identity(kind="host", id="give", role="host"))
    )
    assert await hello(front.role("reader", "mon"))


async def test_only_callers_with_an_own_certificate_can_renew(front: Front) -> None:
    request = service_pb2.RenewCertificateRequest(request="x")
    for api in (front.root(), front.bearer(front.token("admin", "ops"))):
        with refused("PERMISSION_DENIED", "NOT_OURS"):
            await api.service.RenewCertificate(request)
    with refused("INVALID_ARGUMENT", "BAD_CSR"):
        await front.role("reader", "mon").service.RenewCertificate(request)


async def test_an_imported_authority_is_trusted_for_hosts(front: Front) -> None:
    trusted = front.tls.files.trusted
    trusted.mkdir()
    (trusted / "other.pem").write_bytes(made("other").certificate_pem)
    assert (await hello(front.as_(front.certified("host", "take", by="other")))).startswith(
        "host take"
    )
    with refused("UNAUTHENTICATED"):
        await hello(front.as_(front.certified("admin", "ops", by="other")))


async def test_a_token_has_precedence_over_a_certificate(front: Front) -> None:
    both = front.certified("host", "take")
    both.token = front.token("reader", "mon")
    assert (await hello(front.as_(both))).startswith("reader mon (token ")
    both.token = "zfsilo-wrong"
    with refused("UNAUTHENTICATED", "BAD_TOKEN"):
        await front.as_(both).hosts.GetHost(host_pb2.GetHostRequest(name=TAKE))


async def test_a_server_without_a_certificate_refuses_connections(front: Front) -> None:
    front.tls.files.host.unlink()
    with refused("UNAVAILABLE"):
        await front.role("admin", "ops").volumes.ListVolumes(pb.ListVolumesRequest())


async def test_a_server_keeps_its_certificate_when_the_files_break(
    front: Front, tmp_path: Path
) -> None:
    assert await hello(front.role("reader", "mon"))
    front.tls.files.host.write_text("no certificate")
    assert await hello(front.role("reader", "mon"))

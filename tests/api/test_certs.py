"""Certificates, join files, and authentication over the network."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfsilo.v1 import host_pb2, operation_pb2, service_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import TAKE, create, made, refused
from zfsilod.model import chap as chap_module
from zfsilod.model.errors import InvalidArgument, StoreCorrupt, Unauthenticated
from zfsilod.model.identity import Identity
from zfsilod.model.names import split_address
from zfsilod.model.records import Issued
from zfsilod.security import certificates, join_file
from zfsilod.storage import secrets

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front
    from zfsilod.wire.stub import Api

TAKER = Identity(kind="host", id="take", role="host")
OPS = Identity(kind="user", id="ops", role="admin")


def test_a_certificate_contains_an_identity() -> None:
    for identity in (TAKER, OPS):
        pair = certificates.issue(made("ca"), identity, ("10.77.0.1", "take.example"))
        certified = certificates.identify_pem(pair.certificate_pem, made("ca").certificate_pem)
        assert (certified.identity, certified.own) == (identity, True)
    names = certificates.server_names(
        certificates.issue(made("ca"), TAKER, ("10.77.0.1", "a.example")).certificate_pem
    )
    assert names == ("take.zfsilo", "a.example", "10.77.0.1")
    assert (
        certificates.server_names(
            certificates.issue(made("ca"), OPS, ("a.example",)).certificate_pem
        )
        == ()
    )


def test_a_role_of_an_imported_authority_is_limited() -> None:
    pem, own = certificates.issue(made("other"), OPS).certificate_pem, made("ca").certificate_pem
    with pytest.raises(Unauthenticated):
        certificates.identify_pem(pem, own)
    assert not certificates.identify_pem(pem, own, ("admin",)).own


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["zfsilo://host/"],
        ["zfsilo://user/"],
        ["zfsilo://host/a", "zfsilo://host/b"],
        ["zfsilo://host/a", "zfsilo://user/b"],
        ["zfsilo://role/admin"],
        ["zfsilo://user/a", "zfsilo://role/host"],
        ["zfsilo://user/a", "zfsilo://role/node"],
        ["zfsilo://user/a", "zfsilo://role/admin", "zfsilo://role/reader"],
        ["spiffe://host/a"],
    ],
)
def test_invalid_uris_are_not_identities(uris: list[str]) -> None:
    authority = made("ca").certificate_pem
    valid = ["zfsilo://user/a", "zfsilo://role/admin"]
    assert certificates.identify_pem(certificate_with(valid), authority).identity.id == "a"
    with pytest.raises(Unauthenticated):
        certificates.identify_pem(certificate_with(uris), authority)


def certificate_with(uris: list[str]) -> bytes:
    """Return a certificate of the authority "ca" with these alternative names."""
    issuer = certificates.load(made("ca").certificate_pem)
    key = serialization.load_pem_private_key(made("ca").key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    template = certificates.load(certificates.issue(made("ca"), OPS).certificate_pem)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer.subject)
        .subject_name(template.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
    )
    for extension in template.extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(extension.value, extension.critical)
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_an_authority_signs_no_other_authority() -> None:
    certificate = certificates.load(made("ca").certificate_pem)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    assert certificates.is_authority(made("ca").certificate_pem)
    assert not certificates.is_authority(made("give").certificate_pem)


@pytest.mark.parametrize("request_pem", [b"", b"x", made("ca").certificate_pem])
def test_an_invalid_signing_request_is_refused(request_pem: bytes) -> None:
    with pytest.raises(InvalidArgument):
        certificates.sign_request(made("ca"), TAKER, request_pem)


def access(**fields: str) -> join_file.Access:
    pair = certificates.issue(made("ca"), TAKER)
    known = {
        "name": "give",
        "address": "10.77.0.1:7450",
        "tls_name": "give.zfsilo",
        "authority": made("ca").certificate_pem.decode(),
        "certificate": pair.certificate_pem.decode(),
        "key": pair.key_pem.decode(),
    }
    return join_file.Access(**(known | fields))


def test_a_join_file_reads_back() -> None:
    for original in (access(), access(certificate="", key="", token="zfsilo-token")):
        parsed = join_file.parse_join(join_file.make_join(original))
        assert {k: v.strip() for k, v in vars(parsed).items()} == {
            k: v.strip() for k, v in vars(original).items()
        }
        assert original.key.strip() == "" or original.key.splitlines()[1] not in repr(original)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "No Name"},
        {"address": "give"},
        {"address": "give:0"},
        {"address": "give:70000"},
        {"address": "fd00::1:7450"},
        {"address": ":7450"},
        {"certificate": "x"},
        {"key": ""},
        {"address": 'x"\ny:1'},
        {"token": "both"},
        {"authority": ""},
    ],
)
def test_an_invalid_join_file_is_not_written(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        join_file.make_join(access(**fields))


@pytest.mark.parametrize(
    "text", ["", "x", "name = 3", 'name = "give"\n', "[server]\n", "x" * 70000]
)
def test_an_invalid_join_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        join_file.parse_join(text)


def test_errors_do_not_quote_a_join_file() -> None:
    original = access(certificate="", key="", token="zfsilo-planted-secret")
    for text in (
        join_file.make_join(original).replace('token = "', "token = ").replace("authority", "cert"),
        join_file.make_join(original) + f'more = "{original.token}"',
        join_file.make_join(original).replace('token = "', "token = "),
    ):
        with pytest.raises(InvalidArgument) as raised:
            join_file.parse_join(text)
        assert original.token not in str(raised.value)
        assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("give:1", ("give", 1)),
        ("10.0.0.1:3260", ("10.0.0.1", 3260)),
        ("[fd00::1]:65535", ("fd00::1", 65535)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


def test_a_secret_is_not_printed() -> None:
    chap = chap_module.Chap.make(username="a", mutual_username="b")
    text = chap.password.reveal()
    assert len(bytes.fromhex(text.removeprefix(chap_module.PREFIX))) * 8 == 128
    shown = (
        f"{chap} {chap!r} {chap.password} {chap.password!r} {chap.password:>40}",
        f"{chap.password} {chap.password!r}",
        str(vars(chap)),
        repr([chap.password]),
    )
    assert not [name for name in shown if text in name]
    for hidden in (chap, chap.password, access()):
        with pytest.raises(TypeError):
            pickle.dumps(hidden)
    with pytest.raises(TypeError):
        json.dumps({"password": chap.password})


def test_the_sealing_key_may_be_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_here = secrets.load_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / secrets.CREDENTIAL).write_bytes(b"k" * 32)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert secrets.load_key(tmp_path / "key") == b"k" * 32 != made_here
    (tmp_path / secrets.CREDENTIAL).unlink()
    assert secrets.load_key(tmp_path / "key") == made_here


def test_a_truncated_sealing_key_is_reported(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="has 0 bytes, not 32"):
        secrets.load_key(tmp_path / "key")


# Over the network


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
    front.tls.files.write_host(certificates.issue(made("ca"), OPS, ("give.zfsilo",)))
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
    assert front.door.connections == 2
    revoke(front, stolen)
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await hello(thief)
    await hello(owner)
    await front.zfsilo.service.executor.wait_for_change(0.5)  # the door lets the answer out first
    assert front.door.connections == 1


async def test_a_revoked_watcher_receives_nothing_more(front: Front) -> None:
    stolen = front.certified("reader", "mon")
    watch = front.as_(stolen).operations.WatchOperations(operation_pb2.WatchOperationsRequest())
    await watch.read()
    revoke(front, stolen)
    await front.root().volumes.CreateVolume(create())
    with refused("UNAUTHENTICATED", "BAD_CERTIFICATE"):
        await watch.read()


async def test_a_revocation_ends_an_idle_stream(front: Front, monkeypatch: Any) -> None:
    monkeypatch.setattr("zfsilod.api.rpc.server.RECHECK_S", 0.05)
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
    with refused("UNAVAILABLE"):
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

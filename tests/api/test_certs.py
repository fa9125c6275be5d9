"""Certificates, join files, and the sealing key."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.api.running import made
from zfsilod.model import chap as chap_module
from zfsilod.model.errors import InvalidArgument, StoreCorrupt, Unauthenticated
from zfsilod.model.identity import Identity
from zfsilod.model.names import split_address
from zfsilod.security import certificates, join_file
from zfsilod.storage import secrets

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_clock_that_was_ahead_issues_valid_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were not valid yet when the clock was set: every connection failed for days."""
    now = dt.datetime.now(dt.UTC)

    class Ahead(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Ahead:
            return cls.fromtimestamp((now + dt.timedelta(days=100)).timestamp(), tz)

    monkeypatch.setattr("zfsilod.security.certificates.dt.datetime", Ahead)
    authority = certificates.make_authority("ca")
    pair = certificates.issue(authority, TAKER)
    for pem in (authority.certificate_pem, pair.certificate_pem):
        assert x509.load_pem_x509_certificate(pem).not_valid_before_utc < now


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
    with pytest.raises(StoreCorrupt, match="systemd passed none"):
        secrets.load_key(tmp_path / "key")
    secrets.make_key(tmp_path / "key")
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

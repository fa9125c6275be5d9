"""The authority of the cluster, a certificate for each of its parts, and their kubeconfigs."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

    Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

LIFE = dt.timedelta(days=1)
RSA_BITS = 2048
SERVER_ADDRESSES = ("127.0.0.1", "10.96.0.1")
SERVER_NAMES = ("localhost", "kubernetes.default.svc")


class Authority:
    """A certificate authority, whose files are in one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("zfsilo tests")
        certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_signs(), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        _write(folder / "ca", self._key, certificate)
        self._write_account_key()

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def issue(
        self, name: str, user: str, group: str = "", *, server: bool = False, dns: str = ""
    ) -> None:
        """Write NAME.crt and NAME.key for a user, for the API server, or for a name in the DNS."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = _builder(_name(user, group), self._name, key).add_extension(
            x509.ExtendedKeyUsage(usages), critical=False
        )
        addresses = SERVER_ADDRESSES if server else ()
        names = [
            *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in addresses),
            *(x509.DNSName(name) for name in (SERVER_NAMES if server else (dns,)) if name),
        ]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        _write(self.folder / name, key, builder.sign(self._key, hashes.SHA256()))

    def _write_account_key(self) -> None:
        """Write the key pair of the tokens of service accounts."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        (self.folder / "accounts.key").write_bytes(_pem(key))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.folder / "accounts.pub").write_bytes(public)


def kubeconfig(path: Path, address: str, authority: Path, user: dict[str, str]) -> Path:
    """Write a kubeconfig for the API server at an address; JSON is YAML."""
    cluster = {"server": f"https://{address}", "certificate-authority": str(authority)}
    context = {"cluster": "tests", "user": "user"}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "tests", "context": context}],
        "current-context": "tests",
    }
    path.write_text(json.dumps(content))
    path.chmod(0o600)
    return path


def _name(user: str, group: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    if group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _builder(subject: x509.Name, issuer: x509.Name, key: Key) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LIFE)
        .not_valid_after(now + LIFE)
    )


def _signs() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write(stem: Path, key: Key, certificate: x509.Certificate) -> None:
    stem.with_name(f"{stem.name}.key").write_bytes(_pem(key))
    text = certificate.public_bytes(serialization.Encoding.PEM)
    stem.with_name(f"{stem.name}.crt").write_bytes(text)

"""Certificates: the authority of a server, the certificates it signs, and their identities.

The identity is in the subject alternative names, as URIs: zfsilo://host/<id>, or zfsilo://user/<id>
with zfsilo://role/<role>. This host's authority may grant any role, an imported one the roles of
tls.imported_roles. The certificate of a host also has the name <id>.zfsilo, which its clients
verify at any address.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import time
from typing import TYPE_CHECKING

from zfsilod.model.errors import FailedPrecondition, InvalidArgument, Unauthenticated
from zfsilod.model.identity import Certified, Identity
from zfsilod.model.records import Issued
from zfsilod.model.validation import check_id

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

SCHEME = "zfsilo://"
USER_ROLES = ("admin", "controller", "reader", "replica")
DOMAIN = ".zfsilo"
AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 90
RENEWED_DAYS = 30  # before the expiry; a daily timer renews
BACK_DAYS = 365  # before now: this clock may be ahead, or that of a client behind
MAX_COMMON_NAME = 64
MAX_REQUEST_BYTES = 8192


class KeyPair:
    """A certificate and its private key, in PEM."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        self.certificate_pem = certificate_pem
        self.key_pem = key_pem


def tls_name(host_id: str) -> str:
    """Return the name in a host's certificate that its clients verify."""
    return f"{host_id}{DOMAIN}"


def make_authority(host_id: str) -> KeyPair:
    """Create the authority of a server: an ECDSA key and a self-signed certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"zfsilo authority of {host_id}")
    builder = _builder(name, name, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: KeyPair,
    identity: Identity,
    names: tuple[str, ...] = (),
    days: int = CERTIFICATE_DAYS,
) -> KeyPair:
    """Create a key and a certificate for an identity; `names`: further ones of a server."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return _pair(_sign(authority, identity, key.public_key(), names, days), key)


def make_request() -> KeyPair:
    """Create a key and a certificate request, in `certificate_pem`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name("renewal"))
    return KeyPair(request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), _key_pem(key))


def sign_request(authority: KeyPair, identity: Identity, request_pem: bytes) -> bytes:
    """Return a certificate for the key of a request; its other fields are ignored."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        request = x509.load_pem_x509_csr(request_pem[:MAX_REQUEST_BYTES])
    except ValueError:
        raise InvalidArgument("not a PEM certificate request", reason="BAD_CSR") from None
    key = request.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not request.is_signature_valid:
        raise InvalidArgument(
            "the certificate request has no ECDSA key, or is not signed with it", reason="BAD_CSR"
        )
    signed = _sign(authority, identity, key, (), CERTIFICATE_DAYS)
    return signed.public_bytes(Encoding.PEM)


def identify(der: bytes, own_pem: bytes, imported_roles: tuple[str, ...]) -> Certified:
    """Return the identity of a certificate that TLS has verified, else raise Unauthenticated."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    try:
        certificate = x509.load_der_x509_certificate(der)
        own = bool(own_pem) and _is_signed_by(certificate, x509.load_pem_x509_certificate(own_pem))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = list(names.get_values_for_type(x509.UniformResourceIdentifier))
    except (ValueError, x509.ExtensionNotFound):
        raise Unauthenticated(
            "the certificate has no subject alternative name", reason="BAD_CERTIFICATE"
        ) from None
    identity = _identity([uri for uri in uris if _is_ours(uri)])
    if not own and identity.role not in imported_roles:
        raise Unauthenticated(
            f"an imported authority may not grant the role {identity.role}; see tls.imported_roles "
            "in zfsilod.toml(5)",
            reason="BAD_CERTIFICATE",
        )
    return Certified(
        identity=identity,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
        own=own,
    )


def identify_pem(
    pem: bytes, own_pem: bytes, imported_roles: tuple[str, ...] = ("host",)
) -> Certified:
    """Return the identity of a certificate in PEM, else raise Unauthenticated."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return identify(load(pem).public_bytes(Encoding.DER), own_pem, imported_roles)


def record_of(pem: bytes, identity: Identity) -> Issued:
    """Return the record of a certificate that was just signed."""
    certified = identify_pem(pem, b"", (identity.role,))
    return Issued(
        id=certified.fingerprint,
        subject=str(identity),
        role=identity.role,
        created_at=int(time.time()),
        expires_at=certified.not_after,
    )


def server_names(pem: bytes) -> tuple[str, ...]:
    """Return the names and addresses in a host's certificate."""
    from cryptography import x509

    names = load(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def load(pem: bytes) -> x509.Certificate:
    """Read the first certificate of a PEM text, else raise InvalidArgument."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise InvalidArgument("not a PEM certificate", reason="BAD_CERTIFICATE") from None


def is_authority(pem: bytes) -> bool:
    """Tell whether a certificate may sign others."""
    from cryptography import x509

    try:
        return load(pem).extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _identity(uris: list[str]) -> Identity:
    """Return the identity in the URIs of a certificate, else raise Unauthenticated."""
    exact = all(uri.startswith(SCHEME) for uri in uris)
    parts = [uri.removeprefix(SCHEME).partition("/") for uri in sorted(uris)]
    match [(kind, value) for kind, _slash, value in parts if exact]:
        case [("host", host_id)] if _is_id(host_id):
            return Identity(kind="host", id=host_id, role="host")
        case [("role", role), ("user", user)] if _is_id(user) and role in USER_ROLES:
            return Identity(kind="user", id=user, role=role)
        case [("user", user)] if _is_id(user):
            return Identity(kind="user", id=user, role="reader")
    raise Unauthenticated("the certificate has no identity of zfsilo", reason="BAD_CERTIFICATE")


def _is_ours(uri: str) -> bool:
    """Tell whether a URI claims an identity of zfsilo, in whatever spelling."""
    return uri.strip().lower().startswith(SCHEME.partition("/")[0])


def _is_id(text: str) -> bool:
    """Tell whether a text is an id: no pattern, no line break, no percent encoding."""
    try:
        return check_id(text) == text
    except InvalidArgument:
        return False


def _sign(
    authority: KeyPair,
    identity: Identity,
    key: EllipticCurvePublicKey,
    names: tuple[str, ...],
    days: int,
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    signer, signer_key = load(authority.certificate_pem), _load_key(authority.key_pem)
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity.kind == "host":
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = _builder(signer.subject, _name(identity.id), key, days)
    builder = (
        builder.add_extension(_alternative_names(identity, names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()),
            critical=False,
        )
    )
    return builder.sign(signer_key, hashes.SHA256())


def _alternative_names(identity: Identity, names: tuple[str, ...]) -> x509.SubjectAlternativeName:
    from cryptography import x509

    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{SCHEME}{identity}")]
    if identity.kind == "user":
        alternatives.append(x509.UniformResourceIdentifier(f"{SCHEME}role/{identity.role}"))
        return x509.SubjectAlternativeName(alternatives)
    names = (tls_name(identity.id), *names)
    for name in dict.fromkeys(name for name in names if name and name.isascii()):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(alternatives)


def _builder(
    issuer: x509.Name, subject: x509.Name, key: EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=BACK_DAYS))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _is_signed_by(certificate: x509.Certificate, signer: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:MAX_COMMON_NAME])])


def _pair(certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> KeyPair:
    from cryptography.hazmat.primitives.serialization import Encoding

    return KeyPair(certificate.public_bytes(Encoding.PEM), _key_pem(key))


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _load_key(pem: bytes) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    wrong = FailedPrecondition(
        "the key of the authority cannot be read; restore ca.key from a backup", reason="BAD_KEY"
    )
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise wrong from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise wrong
    return key

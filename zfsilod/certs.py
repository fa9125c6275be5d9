"""The server's certificate, made on first start, and the join file that carries it to a consumer.

There is no authority: a consumer trusts exactly the one certificate that it was given, whatever its
names say, so all that matters is that the join file came over a safe way.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import tomli

from zfsilod.errors import InvalidArgument
from zfsilod.verbs import check_id

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.x509 import GeneralName

PINNED_NAME = "zfsilo"  # in every certificate: what clients ask for in place of the address
VALID_DAYS = 365 * 30  # it is replaced by a new join file, not by a date
CERTIFICATE, KEY = "server.pem", "server.key"
# grpc has no option for the lowest version of TLS. With an ECDSA certificate no cipher of TLS 1.2
# is left over by this list, and those of 1.3 are always on.
TLS13_ONLY = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES128-GCM-SHA256"}
MAX_JOIN_BYTES = 16384


class Certificate:
    """A certificate and its private key, as PEM."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        self.certificate_pem = certificate_pem
        self.key_pem = key_pem


class Join:
    """What a consumer needs to use a server. The token is a secret: never log one."""

    def __init__(self, *, name: str, address: str, certificate_pem: str, token: str) -> None:
        self.name = name
        self.address = address
        self.certificate_pem = certificate_pem
        self.token = token


def require_tls13() -> None:
    """Refuse all TLS below 1.3 in this process. Must come before the first import of grpc."""
    os.environ.update(TLS13_ONLY)


def load_or_make(directory: Path, names: tuple[str, ...]) -> Certificate:
    """Return the certificate of a directory; the first call makes it for these names."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key = directory / CERTIFICATE, directory / KEY
    if not certificate.exists():  # it is written last, so with it the key is there too
        made = make(names)
        _write(key, made.key_pem)
        _write(certificate, made.certificate_pem)
    return Certificate(certificate.read_bytes(), key.read_bytes())


def expiry(certificate_pem: str) -> float:
    """Return when a certificate ends, in seconds since 1970."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(certificate_pem.encode())
    except ValueError as error:
        raise InvalidArgument("it is no certificate", reason="BAD_CERTIFICATE") from error
    return found.not_valid_after_utc.timestamp()


def expiries(own: Path, servers: dict[str, str]) -> dict[str, float]:
    """Return when our own certificate, and those of servers, end; unreadable ones are left out."""
    found = {}
    own_pem = (own / CERTIFICATE).read_text() if (own / CERTIFICATE).exists() else ""
    for name, pem in {"own": own_pem, **servers}.items():
        with suppress(InvalidArgument):
            found[name] = expiry(pem)
    return found


def make(names: tuple[str, ...]) -> Certificate:
    """Make a self-signed ECDSA certificate for host names and addresses."""
    # 40 ms to import: only a server's first start needs it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, PINNED_NAME)])
    now = dt.datetime.now(dt.UTC)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A consumer's clock may be behind ours.
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([_general_name(each) for each in _all(names)]),
            critical=False,
        )
        # It can sign nothing else: whoever trusts it trusts this one key.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def make_join(join: Join) -> str:
    """Return the text of a join file."""
    certificate = join.certificate_pem.strip()
    text = (
        "# Lets a host use the volumes of this server: zfsiloctl join FILE\n"
        "# It holds a secret. Delete it afterwards.\n"
        f'name = "{join.name}"\n'
        f'address = "{join.address}"\n'
        f'token = "{join.token}"\n'
        f'certificate = """\n{certificate}\n"""\n'
    )
    parse_join(text)  # what is handed out can be read
    return text


def parse_join(text: str) -> Join:
    """Read a join file, else raise InvalidArgument (which never quotes it)."""
    if len(text) > MAX_JOIN_BYTES:
        raise InvalidArgument("the join file is too long to be one", reason="BAD_JOIN")
    try:
        found = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        # Without the parser's message and chain: they may quote the line with the token.
        line = getattr(error, "lineno", 0)
        raise InvalidArgument(
            f"the join file is no TOML: see its line {line}", reason="BAD_JOIN"
        ) from None
    missing = {"name", "address", "token", "certificate"} ^ set(found)
    if missing or not all(isinstance(each, str) for each in found.values()):
        raise InvalidArgument(
            "the join file must have exactly name, address, token and certificate, all texts",
            reason="BAD_JOIN",
        )
    check_id(found["name"], "server name")
    split_address(found["address"])
    if "BEGIN CERTIFICATE" not in found["certificate"]:
        raise InvalidArgument("the certificate in the join file is no PEM", reason="BAD_JOIN")
    return Join(
        name=found["name"], address=found["address"],
        certificate_pem=found["certificate"].strip() + "\n", token=found["token"],
    )  # fmt: skip


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [IPV6]:PORT, else raise InvalidArgument."""
    host, _colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare) != (bare != host) or not bare.isascii() or not bare.isprintable():
        raise InvalidArgument(
            f"{address[:200]!r} is no address: HOST:PORT or [IPV6]:PORT", reason="BAD_ADDRESS"
        )
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidArgument(f"{address[:200]!r} has no port: HOST:PORT", reason="BAD_ADDRESS")
    return bare, int(port)


def _all(names: tuple[str, ...]) -> list[str]:
    """Return the pinned name and the given ones, each once, without what cannot stand there."""
    known = [PINNED_NAME, *(each for each in names if each and each.isascii())]
    return list(dict.fromkeys(known))


def _general_name(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, content: bytes) -> None:
    """Write a file for its owner only, whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)

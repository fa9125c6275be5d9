"""Join files, which give a host or user access to a server, and the PEM files of this host."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import tomli

from zfsilod.model.errors import FailedPrecondition, InvalidArgument
from zfsilod.model.name_patterns import target_prefix
from zfsilod.model.names import split_address
from zfsilod.model.validation import check_id
from zfsilod.security.certificates import KeyPair, load
from zfsilod.storage.files import write_private

if TYPE_CHECKING:
    from pathlib import Path

MAX_JOIN_BYTES = 65536
NEEDED = ("address", "authority", "tls_name")
OPTIONAL = ("certificate", "key", "token", "iqn_prefix")


class Access:
    """Access to a server: its address and authority, and a certificate with key, or a token.

    It has secrets, and cannot be printed or pickled.
    """

    def __init__(
        self,
        *,
        name: str,
        address: str,
        tls_name: str,
        authority: str,
        certificate: str = "",
        key: str = "",
        token: str = "",
        iqn_prefix: str = "",
    ) -> None:
        self.name = name
        self.address = address
        self.tls_name = tls_name  # name that its certificate must have
        self.authority = authority  # PEM of the authority that must have signed it
        self.certificate = certificate
        self.key = key
        self.token = token
        self.iqn_prefix = iqn_prefix  # of all its targets; "": not told

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Access) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.name, self.address))

    def __repr__(self) -> str:
        return f"Access(name={self.name!r}, address={self.address!r}, ...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


class Files:
    """The PEM files of this host, in the folder tls of the state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = directory / "ca.pem"
        self.authority_key = directory / "ca.key"
        self.host = directory / "host.pem"  # key, certificate and intermediates
        self.trusted = directory / "trusted"  # imported authorities

    def own_authority(self) -> KeyPair:
        """Return this host's authority, else raise FailedPrecondition."""
        if not self.authority.exists():
            raise FailedPrecondition(
                "this host has no certificate authority; run zfsiloctl pki init",
                reason="NO_AUTHORITY",
            )
        return KeyPair(self.authority.read_bytes(), self.authority_key.read_bytes())

    def write_authority(self, pair: KeyPair) -> None:
        """Write a new authority."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.authority_key, pair.key_pem)
        write_private(self.authority, pair.certificate_pem)

    def write_host(self, pair: KeyPair) -> None:
        """Write this host's certificate and key, in one file so that they always match."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.host, pair.key_pem + pair.certificate_pem)

    def write_trusted(self, pem: bytes) -> Path:
        """Add a trusted authority. Raises InvalidArgument when it is not a PEM certificate."""
        path = self.trusted / f"{load(pem).serial_number:x}.pem"
        for folder in (self.directory, self.trusted):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, pem)
        return path


def write_server(path: Path, access: Access) -> None:
    """Write a file of servers.d."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, body(access).encode())


def make_join(access: Access) -> str:
    """Return the text of a join file."""
    text = (
        f"# Gives access to the volumes of the server {access.name}.\n"
        "# It has a secret: delete it after zfsiloctl join.\n"
        f'name = "{access.name}"\n'
    ) + body(access)
    parse_join(text)  # raises if it could not be read back
    return text


def body(access: Access) -> str:
    """Return the common part of a join file and a file of servers.d."""
    lines = [f'address = "{access.address}"', f'tls_name = "{access.tls_name}"']
    if access.iqn_prefix:
        lines.append(f'iqn_prefix = "{access.iqn_prefix}"')
    if access.token:
        lines.append(f'token = "{access.token}"')
    for key in ("authority", "certificate", "key"):
        pem = getattr(access, key).strip()
        if pem:
            lines.append(f'{key} = """\n{pem}\n"""')
    return "\n".join(lines) + "\n"


def parse_join(text: str, name: str = "") -> Access:
    """Parse a join file, else raise InvalidArgument, which never quotes it.

    `name`: of the server, for a file of servers.d, which has no such key.
    """
    if len(text) > MAX_JOIN_BYTES:
        raise InvalidArgument(
            f"invalid join file: longer than {MAX_JOIN_BYTES} characters", reason="BAD_JOIN"
        )
    try:
        keys = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        # Without the parser's message and chain: they may quote the line with the secret.
        line = getattr(error, "lineno", 0)
        raise InvalidArgument(
            f"invalid join file: not TOML in line {line}", reason="BAD_JOIN"
        ) from None
    needed = NEEDED if name else ("name", *NEEDED)
    known = {*needed, *OPTIONAL}
    if not (set(needed) <= set(keys) <= known and all(isinstance(v, str) for v in keys.values())):
        raise InvalidArgument(
            f"invalid join file: needed are {', '.join(needed)}; allowed are "
            f"{', '.join(OPTIONAL)}; all strings",
            reason="BAD_JOIN",
        )
    access = Access(**({"name": name} | keys))
    _check(access)
    return access


def _check(access: Access) -> None:
    check_id(access.name, "server name")
    split_address(access.address)
    if access.iqn_prefix:
        try:
            target_prefix(access.iqn_prefix)
        except InvalidArgument:
            raise InvalidArgument(
                "invalid join file: iqn_prefix is not an IQN", reason="BAD_JOIN"
            ) from None
    pems = [access.authority, *((access.certificate,) if access.certificate else ())]
    if not all("BEGIN CERTIFICATE" in pem for pem in pems):
        raise InvalidArgument("invalid join file: a certificate is not PEM", reason="BAD_JOIN")
    if bool(access.certificate) != bool(access.key) or bool(access.key) == bool(access.token):
        raise InvalidArgument(
            "invalid join file: it needs a certificate and its key, or a token", reason="BAD_JOIN"
        )


def expiry(certificate_pem: str) -> int:
    """Return the expiry of a certificate in seconds since 1970. Raises InvalidArgument."""
    return int(load(certificate_pem.encode()).not_valid_after_utc.timestamp())


def expiries(own: Path, servers: dict[str, str]) -> dict[str, float]:
    """Return the expiry of this host's own certificate and of those for `servers`, by name.

    Invalid certificates are left out.
    """
    expires = {}
    host = Files(own).host
    own_pem = host.read_text() if host.exists() else ""
    for name, pem in {"own": own_pem, **servers}.items():
        with suppress(InvalidArgument):
            expires[name] = float(expiry(pem))
    return expires

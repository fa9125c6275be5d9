"""Join files, which carry all that a host or person needs to use a server, and where PEMs lie."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import tomli

from zfsilod.model.errors import FailedPrecondition, InvalidArgument
from zfsilod.model.names import split_address
from zfsilod.model.validation import check_id
from zfsilod.security.certificates import Pair, load
from zfsilod.storage.files import write_private

if TYPE_CHECKING:
    from pathlib import Path

MAX_JOIN_BYTES = 65536
NEEDED = ("address", "authority", "tls_name")
OPTIONAL = ("certificate", "key", "token")


class Access:
    """How a server is reached, and as whom: by a certificate with its key, or by a token.

    It holds secrets: it cannot be printed or pickled.
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
    ) -> None:
        self.name = name
        self.address = address
        self.tls_name = tls_name  # what its certificate must say
        self.authority = authority  # PEM of whom it must be signed by
        self.certificate = certificate
        self.key = key
        self.token = token

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Access) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.name, self.address))

    def __repr__(self) -> str:
        return f"Access(name={self.name!r}, address={self.address!r}, ...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


class Files:
    """The PEM files of this host, below the state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = directory / "ca.pem"
        self.authority_key = directory / "ca.key"
        self.host = directory / "host.pem"  # its key, its certificate and what it rests on
        self.trusted = directory / "trusted"  # imported authorities

    def own_authority(self) -> Pair:
        """Return the authority that this host is, else raise FailedPrecondition."""
        if not self.authority.exists():
            raise FailedPrecondition(
                "this host has no authority yet: zfsiloctl pki init", reason="NO_AUTHORITY"
            )
        return Pair(self.authority.read_bytes(), self.authority_key.read_bytes())

    def write_authority(self, pair: Pair) -> None:
        """Keep a new authority."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.authority_key, pair.key_pem)
        write_private(self.authority, pair.certificate_pem)

    def write_host(self, pair: Pair) -> None:
        """Keep this host's certificate: in one file, so that it and its key always agree."""
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
        f"# Lets its holder use the volumes of the server {access.name}.\n"
        "# It holds a secret. Delete it when it is used.\n"
        f'name = "{access.name}"\n'
    ) + body(access)
    parse_join(text)  # what is handed out can be read
    return text


def body(access: Access) -> str:
    """Return what a join file and a file of servers.d have in common."""
    lines = [f'address = "{access.address}"', f'tls_name = "{access.tls_name}"']
    if access.token:
        lines.append(f'token = "{access.token}"')
    for key in ("authority", "certificate", "key"):
        pem = getattr(access, key).strip()
        if pem:
            lines.append(f'{key} = """\n{pem}\n"""')
    return "\n".join(lines) + "\n"


def parse_join(text: str, name: str = "") -> Access:
    """Read a join file, else raise InvalidArgument (which never quotes it).

    `name`: of a file of servers.d, which has it in its own name.
    """
    if len(text) > MAX_JOIN_BYTES:
        raise InvalidArgument("the join file is too long to be one", reason="BAD_JOIN")
    try:
        found = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        # Without the parser's message and chain: they may quote the line with the secret.
        line = getattr(error, "lineno", 0)
        raise InvalidArgument(
            f"the join file is no TOML: see its line {line}", reason="BAD_JOIN"
        ) from None
    needed = NEEDED if name else ("name", *NEEDED)
    known = {*needed, *OPTIONAL}
    if not (set(needed) <= set(found) <= known and all(isinstance(v, str) for v in found.values())):
        raise InvalidArgument(
            f"the join file must have {', '.join(needed)}, perhaps {', '.join(OPTIONAL)}, and "
            "nothing else, all texts",
            reason="BAD_JOIN",
        )
    access = Access(**({"name": name} | found))
    _check(access)
    return access


def _check(access: Access) -> None:
    check_id(access.name, "server name")
    split_address(access.address)
    pems = [access.authority, *((access.certificate,) if access.certificate else ())]
    if not all("BEGIN CERTIFICATE" in each for each in pems):
        raise InvalidArgument("a certificate in the join file is no PEM", reason="BAD_JOIN")
    if bool(access.certificate) != bool(access.key) or bool(access.key) == bool(access.token):
        raise InvalidArgument(
            "the join file must have a certificate and its key, or else a token", reason="BAD_JOIN"
        )


def expiry(certificate_pem: str) -> int:
    """Return when a certificate ends, in seconds since 1970. Raises InvalidArgument."""
    return int(load(certificate_pem.encode()).not_valid_after_utc.timestamp())


def expiries(own: Path, servers: dict[str, str]) -> dict[str, float]:
    """Return when our own certificate, and those for servers, end; unreadable ones are left out."""
    found = {}
    host = Files(own).host
    own_pem = host.read_text() if host.exists() else ""
    for name, pem in {"own": own_pem, **servers}.items():
        with suppress(InvalidArgument):
            found[name] = float(expiry(pem))
    return found

"""The servers that this host knows: files of /etc/zfsilo/servers.d, which hold a secret each."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.ctl import places
from zfsilod.errors import InvalidArgument, NotFound, PermissionDenied

if TYPE_CHECKING:
    import grpc

STDIN = "-"
KEYS = {"address", "certificate", "token"}


class Known:
    """A server, where it is, the one certificate that it may show, and our token for it."""

    def __init__(self, *, name: str, address: str, certificate: str, token: str) -> None:
        self.name = name
        self.address = address
        self.certificate = certificate
        self.token = token

    def channel(self) -> grpc.Channel:
        """Open a channel over which the token goes to this server and to no other."""
        from zfsilod.api.channel import tls_channel

        channel: grpc.Channel = tls_channel(self.address, self.certificate, self.token)
        return channel


def names() -> list[str]:
    """Return the names of all servers, in order. Raises PermissionDenied."""
    try:
        return sorted(each.stem for each in _directory().iterdir() if each.suffix == ".toml")
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise _not_yours(_directory()) from error


def find(name: str) -> Known:
    """Return a server by its name, or by the path of a join file."""
    if "/" in name or name.endswith(".toml"):
        return from_join(Path(name))
    path = path_of(name)
    if not path.exists() and Path(name).is_file():
        return from_join(Path(name))
    return read(name)


def read(name: str) -> Known:
    """Return a server by its name. Raises NotFound, or InvalidArgument when its file is wrong."""
    import tomllib

    path = path_of(name)
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFound(
            f"this host knows no server {name}: zfsiloctl server join FILE", server=name
        ) from error
    except PermissionError as error:
        raise _not_yours(path) from error
    except tomllib.TOMLDecodeError:
        # Not what the parser says: it may quote the line with the token.
        raise InvalidArgument(f"{path} is no TOML", reason="BAD_CONFIG") from None
    if set(found) != KEYS or not all(isinstance(each, str) for each in found.values()):
        raise InvalidArgument(
            f"{path} must have exactly {', '.join(sorted(KEYS))}, all texts", reason="BAD_CONFIG"
        )
    return Known(name=name, **found)


def write(known: Known) -> Path:
    """Keep a server, readable for root only: whole or not at all."""
    path = path_of(known.name)
    text = (
        f'address = "{known.address}"\ntoken = "{known.token}"\n'
        f'certificate = """\n{known.certificate}"""\n'
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except PermissionError as error:
        raise _not_yours(path) from error
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    return path


def forget(name: str) -> None:
    """Remove a server. Raises NotFound."""
    try:
        path_of(name).unlink()
    except FileNotFoundError as error:
        raise NotFound(f"this host knows no server {name}", server=name) from error
    except PermissionError as error:
        raise _not_yours(path_of(name)) from error


def from_join(path: Path) -> Known:
    """Read a join file ("-": standard input)."""
    import sys

    from zfsilod.certs import parse_join

    try:
        text = sys.stdin.read() if str(path) == STDIN else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the join file {path} cannot be read: {_why(error)}") from error
    join = parse_join(text)
    return Known(
        name=join.name, address=join.address, certificate=join.certificate_pem, token=join.token
    )


def path_of(name: str) -> Path:
    """Return where a server is kept. Raises InvalidArgument for what is no name."""
    if not name or name.startswith(".") or "/" in name:
        raise InvalidArgument(f"{name[:80]!r} is no name of a server", reason="BAD_ID")
    return _directory() / f"{name}.toml"


def _directory() -> Path:
    return places.etc() / "servers.d"


def _not_yours(path: Path) -> PermissionDenied:
    return PermissionDenied(f"{path} is for root only: use sudo", reason="NOT_ROOT")


def _why(error: OSError | UnicodeDecodeError) -> str:
    return os.strerror(error.errno or 0) if isinstance(error, OSError) else "it is no text"

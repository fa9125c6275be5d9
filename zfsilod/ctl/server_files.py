"""Known servers: files in /etc/zfsilo/servers.d, with address, authority and secret."""

from __future__ import annotations

import os
from pathlib import Path

from zfsilod.ctl import paths
from zfsilod.model.errors import InvalidArgument, NotFound, PermissionDenied
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.ctl.http import TlsChannel
    from zfsilod.security.join_file import Access

STDIN = "-"


def channel_to(server: Access) -> TlsChannel:
    """Return the way to a server over TLS, with the identity that its file holds."""
    from zfsilod.ctl.http import TlsChannel

    return TlsChannel(server)


def names() -> list[str]:
    """Return the names of all known servers, sorted. Raises PermissionDenied."""
    try:
        return sorted(path.stem for path in _directory().iterdir() if path.suffix == ".toml")
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise _root_only(_directory()) from error


def find(name: str) -> Access:
    """Return a server by its name or by the path of a join file."""
    if "/" in name or name.endswith(".toml"):
        return from_join(Path(name))
    path = path_of(name)
    if not path.exists() and Path(name).is_file():
        return from_join(Path(name))
    return read(name)


def read(name: str) -> Access:
    """Return a server by its name. Raises NotFound, or InvalidArgument when its file is wrong."""
    from zfsilod.security.join_file import parse_join

    path = path_of(name)
    try:
        return parse_join(path.read_text(), name)
    except FileNotFoundError as error:
        raise NotFound(
            f"unknown server {name}; add it with zfsiloctl join FILE", server=name
        ) from error
    except PermissionError as error:
        raise _root_only(path) from error
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not UTF-8", reason="BAD_CONFIG") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}", reason="BAD_CONFIG") from None


def write(server: Access) -> Path:
    """Write the file of a server atomically, readable for root only."""
    from zfsilod.security.join_file import write_server

    path = path_of(server.name)
    try:
        write_server(path, server)
    except PermissionError as error:
        raise _root_only(path) from error
    return path


def forget(name: str) -> None:
    """Remove the file of a server. Raises NotFound."""
    try:
        path_of(name).unlink()
    except FileNotFoundError as error:
        raise NotFound(f"unknown server {name}; see zfsiloctl server list", server=name) from error
    except PermissionError as error:
        raise _root_only(path_of(name)) from error


def from_join(path: Path) -> Access:
    """Read a join file ("-": standard input)."""
    import sys

    from zfsilod.security.join_file import parse_join

    try:
        text = sys.stdin.read() if str(path) == STDIN else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = os.strerror(error.errno or 0) if isinstance(error, OSError) else "it is not text"
        raise InvalidArgument(f"cannot read the join file {path}: {cause}") from error
    return parse_join(text)


def path_of(name: str) -> Path:
    """Return the path of a server's file. Raises InvalidArgument for an invalid name."""
    if not name or name.startswith(".") or "/" in name:
        raise InvalidArgument(f"invalid server name {name[:80]!r}", reason="BAD_ID")
    return _directory() / f"{name}.toml"


def _directory() -> Path:
    return paths.etc() / "servers.d"


def _root_only(path: Path) -> PermissionDenied:
    return PermissionDenied(f"no access to {path}; use sudo", reason="NOT_ROOT")


def only_name() -> str:
    """Return the name of the only known server. Raises InvalidArgument."""
    known = names()
    if len(known) == 1:
        return known[0]
    if not known:
        raise InvalidArgument(
            "no server is known; add one with zfsiloctl join FILE", reason="NO_SERVER"
        )
    raise InvalidArgument(
        f"several servers are known ({', '.join(known)}); name one with --server",
        reason="NO_SERVER",
    )

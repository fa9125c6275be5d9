"""The servers that this host knows: files of /etc/zfsilo/servers.d, which hold a secret each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.ctl import paths
from zfsilod.model.errors import InvalidArgument, NotFound, PermissionDenied

if TYPE_CHECKING:
    import grpc

    from zfsilod.security.join_file import Access

STDIN = "-"


def channel_to(server: Access) -> grpc.Channel:
    """Open a channel over which our identity is shown to this server and to no other."""
    from zfsilod.wire.channel import tls_channel

    channel: grpc.Channel = tls_channel(server)
    return channel


def names() -> list[str]:
    """Return the names of all servers, in order. Raises PermissionDenied."""
    try:
        return sorted(each.stem for each in _directory().iterdir() if each.suffix == ".toml")
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise _not_yours(_directory()) from error


def find(name: str) -> Access:
    """Return a server by its name, or by the path of a join file."""
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
            f"this host knows no server {name}: zfsiloctl join FILE", server=name
        ) from error
    except PermissionError as error:
        raise _not_yours(path) from error
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}", reason="BAD_CONFIG") from None


def write(known: Access) -> Path:
    """Keep a server, readable for root only: whole or not at all."""
    from zfsilod.security.join_file import write_server

    path = path_of(known.name)
    try:
        write_server(path, known)
    except PermissionError as error:
        raise _not_yours(path) from error
    return path


def forget(name: str) -> None:
    """Remove a server. Raises NotFound."""
    try:
        path_of(name).unlink()
    except FileNotFoundError as error:
        raise NotFound(f"this host knows no server {name}", server=name) from error
    except PermissionError as error:
        raise _not_yours(path_of(name)) from error


def from_join(path: Path) -> Access:
    """Read a join file ("-": standard input)."""
    import sys

    from zfsilod.security.join_file import parse_join

    try:
        text = sys.stdin.read() if str(path) == STDIN else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the join file {path} cannot be read: {_why(error)}") from error
    return parse_join(text)


def path_of(name: str) -> Path:
    """Return where a server is kept. Raises InvalidArgument for what is no name."""
    if not name or name.startswith(".") or "/" in name:
        raise InvalidArgument(f"{name[:80]!r} is no name of a server", reason="BAD_ID")
    return _directory() / f"{name}.toml"


def _directory() -> Path:
    return paths.etc() / "servers.d"


def _not_yours(path: Path) -> PermissionDenied:
    return PermissionDenied(f"{path} is for root only: use sudo", reason="NOT_ROOT")


def _why(error: OSError | UnicodeDecodeError) -> str:
    return os.strerror(error.errno or 0) if isinstance(error, OSError) else "it is no text"

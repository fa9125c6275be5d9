"""The configuration as a worker reads it: files that only root may write, by a fast parser.

A TOML parser takes 20 ms to import, as much as all else that a worker does. A file of which every
line has one of the plain forms below is read without it; any other form takes the parser.
"""

from __future__ import annotations

import os
import stat

from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import exists, names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from zfsilod.storage.paths import AnyPath

DIRECTORY = "/etc/zfsilo"
DEFAULT_PREFIX = "iqn.2026-01.org.zfsilo:"  # then the host id; a target adds the volume's uid
DEFAULT_PORTALS = ("0.0.0.0:3260",)
DEFAULT_NVME_PORTALS = ("0.0.0.0:4420",)
DEFAULT_NVME_TLS_PORT = 4421
DEFAULT_PATHS = ("/var/lib/kubelet",)
NUMBER = frozenset("0123456789_.+-")
MULTILINE = '"""'
PREFIX_KEY = "iqn_prefix"


def read_tables(directory: AnyPath) -> Iterator[dict[str, Any]]:
    """Yield the tables of each configuration file; a later one has precedence.

    Raises FailedPrecondition (BAD_CONFIG) when others than root may write a file or its directory.
    """
    check_folders(directory)
    for path in files(directory):
        yield parse(_read(path))


def files(directory: AnyPath) -> list[str]:
    """Return the configuration files; a later one has precedence."""
    main, folder = f"{os.fspath(directory)}/zfsilod.toml", f"{os.fspath(directory)}/zfsilod.toml.d"
    more = [f"{folder}/{name}" for name in names(folder) if name.endswith(".toml")]
    return [main, *more] if exists(main) else more


def read_server_prefix(directory: AnyPath, server: str) -> str | None:
    """Return the prefix of the targets of a joined server, "" when it is not told.

    None: this host is not joined to it.
    """
    folder = f"{os.fspath(directory)}/servers.d"
    path = f"{folder}/{server}.toml"
    if not exists(path):
        return None
    check_owner(os.stat(folder), folder)
    text = _read(path)
    if PREFIX_KEY not in text:
        return ""
    plain, quotes, rest = text.partition(MULTILINE)  # the certificates come after the plain lines
    if quotes and PREFIX_KEY not in rest:
        text = plain.rpartition("\n")[0]
    return str(parse(text).get(PREFIX_KEY, ""))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            check_owner(os.fstat(file.fileno()), path)
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"{path} cannot be read: {error}", reason="BAD_CONFIG") from None


def check_folders(directory: AnyPath) -> None:
    """Raise FailedPrecondition (BAD_CONFIG) when others than root may add configuration files."""
    for folder in (os.fspath(directory), f"{os.fspath(directory)}/zfsilod.toml.d"):
        if exists(folder):
            check_owner(os.stat(folder), folder)


def check_owner(status: os.stat_result, path: AnyPath) -> None:
    """Raise FailedPrecondition (BAD_CONFIG) unless only root, or this user, may write a path."""
    if status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    raise FailedPrecondition(
        f"{path} may be written by others than root; run `chown root:root {path}` and "
        f"`chmod go-w {path}`",
        reason="BAD_CONFIG",
        path=os.fspath(path),
    )


def parse(text: str) -> dict[str, Any]:
    """Return the tables of a configuration file: as tomllib.loads(), but numbers are texts."""
    tables: dict[str, Any] = {}
    table = tables
    for line in text.split("\n"):
        content = line.strip(" \t\r")
        if not content or content[0] == "#":
            continue
        plain = content.replace("\t", " ").isprintable() and not {"'", "\\"}.intersection(content)
        if content[0] == "[":
            name, bracket, rest = content[1:].partition("]")
            value: object = {} if bracket else None
            where = tables
        else:
            name, _equals, rest = content.partition("=")
            value, rest = _value(rest.strip())
            where = table
        name = name.strip()
        ended = not rest.strip() or rest.strip()[0] == "#"
        if not (plain and ended and name.isascii() and name.isidentifier()) or name in where:
            return _parse_fully(text)
        if value is None:
            return _parse_fully(text)
        where[name] = value
        table = tables[name] if where is tables and value == {} else table
    return tables


def _value(text: str) -> tuple[object, str]:
    """Return a plain value, and the text after it; None: it has another form."""
    if text[:1] == '"':
        value, quote, rest = text[1:].partition('"')
        return (value if quote else None), rest
    if text[:1] == "[":
        items, bracket, rest = text[1:].partition("]")
        parts = items.split('"')
        between = [part.strip() for part in parts[::2]]
        separated = set(between[1:-1]) <= {","} and between[-1] in ("", ",")
        valid = bracket and len(parts) % 2 and not between[0] and separated
        return (parts[1::2] if valid else None), rest
    value = text.partition("#")[0].strip()
    valid_number = value and set(value) <= NUMBER
    return (value if value in ("true", "false") or valid_number else None), ""


def _parse_fully(text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FailedPrecondition(
            f"the configuration in {DIRECTORY} is not TOML: {error}", reason="BAD_CONFIG"
        ) from None

"""What a worker may change, whatever the store says: read from files that only root may write.

The worker checks each operation against /etc/zfsilo/zfsilod.toml and zfsilod.toml.d: datasets are
below server.root, targets have the prefix of zfsilo and a volume's uid, mounts are outside of the
folders of the kernel and of zfsilod, and the paths of the CSI node are below csi.allowed_paths.

A TOML parser takes 6 to 8 ms to import, a third of the CPU time of a worker. A file of which every
line has one of the plain forms below is read without it; any other form takes the parser.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.records import Action, Step

DIRECTORY = Path("/etc/zfsilo")
ANYWHERE = "/"
DEFAULT_PREFIX = "iqn.2026-01.org.zfsilo:"  # then the host id, and the uid of the volume
DEFAULT_PATHS = ("/var/lib/kubelet",)
HEX = frozenset("0123456789abcdef")
NUMBER = frozenset("0123456789_.+-")


class WorkerLimits(Record):
    """The limits that the administrator of this host has configured."""

    root: str  # dataset; "": this host is not a server
    prefix: str  # of the targets of this host; "": the default of some host id
    folders: tuple[str, ...]  # of the CSI node, without links

    def check(self, actions: Iterable[Action]) -> None:
        """Raise PermissionDenied (OUTSIDE_LIMITS) for an action that goes beyond the limits."""
        for action in actions:
            resources = action.step.resources()
            for dataset in resources.datasets:
                self._check_dataset(dataset)
            for target in resources.targets:
                self._check_target(target, server=getattr(action.step, "part", "") == "TARGET")
            for path in resources.paths:
                self._check_path(path, action)

    def _check_dataset(self, dataset: str) -> None:
        if not self.root or not f"{dataset}/".startswith(f"{self.root}/"):
            raise _outside(f"dataset {dataset[:255]}", f"server.root ({self.root or 'not set'})")

    def _check_target(self, target: str, *, server: bool) -> None:
        from zfsilod.model.names import ISCSI_NAME  # the adapters of such steps import it, too

        name, _colon, uid = target.rpartition(":")
        if not ISCSI_NAME.fullmatch(target) or len(uid) != 32 or not set(uid) <= HEX:
            raise _outside(f"target {target[:223]}", "targets that end with the uid of a volume")
        if server and name != self.prefix and not name.startswith(DEFAULT_PREFIX):
            raise _outside(f"target {target}", f"server.iqn_prefix ({self.prefix or 'default'})")

    def _check_path(self, path: str, action: Action) -> None:
        from zfsilod.model.validation import check_path  # for clients only

        try:
            check_path(path)
        except InvalidArgument:
            raise _outside(f"mount path {path[:200]!r}", "allowed mount paths") from None
        root = _root_of(action.step)
        if action.up and root not in ("", ANYWHERE, *self.folders):
            raise _outside(f"mount path {path[:200]} below {root[:200]}", "csi.allowed_paths")


def read_limits(directory: Path = DIRECTORY) -> WorkerLimits:
    """Return the configured limits. Raises FailedPrecondition for a file that others may write."""
    server: dict[str, Any] = {}
    csi: dict[str, Any] = {}
    for path in (
        directory / "zfsilod.toml",
        *sorted((directory / "zfsilod.toml.d").glob("*.toml")),
    ):
        if path.exists():
            tables = parse(_read(path))
            server |= tables.get("server", {})
            csi |= tables.get("csi", {})
    folders = csi.get("allowed_paths", DEFAULT_PATHS)
    return WorkerLimits(
        root=str(server.get("root", "")),
        prefix=str(server.get("iqn_prefix", "")).lower(),
        folders=tuple(str(Path(folder).resolve()) for folder in folders),
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


def _read(path: Path) -> str:
    status = path.stat()
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise FailedPrecondition(
            f"{path} may be written by others than root; run chown root and chmod 644 on it",
            reason="BAD_CONFIG",
        )
    return path.read_text()


def _root_of(step: Step) -> str:
    return str(getattr(step, "root", ""))


def _outside(thing: str, limit: str) -> PermissionDenied:
    return PermissionDenied(
        f"the worker refuses {thing}: it is outside of {limit} in {DIRECTORY}; nothing was changed",
        reason="OUTSIDE_LIMITS",
    )

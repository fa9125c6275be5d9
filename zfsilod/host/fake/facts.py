"""The facts of a simulated machine, in a file or in memory, and a fuse for fault injection.

A change of one fact is one effect, as a system call or a tool is on a real host. The fuse raises an
error or kills the process at the n-th effect.
"""

from __future__ import annotations

import fcntl
import os

from zfsilod.model.errors import CommandFailed
from zfsilod.model.lean import TYPE_CHECKING, contextmanager, signal
from zfsilod.storage import record_json
from zfsilod.storage.paths import exists, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from zfsilod.storage.paths import AnyPath

VOLATILE = (
    "key",
    "backstore",
    "target",
    "lun",
    "namespace",
    "cntlids",
    "closed",
    "portals",
    "enabled",
    "acl",
    "psk",
    "mapped",
    "limit",
    "session",
    "mount",
    "outdated",
    "failed",
    "user",
)


class FactTable(dict):  # type: ignore[type-arg]  # subscripted, it would be imported by the worker
    """The facts by name, and by kind: a walk over all facts takes longer than a tool."""

    def __init__(self, facts: dict[str, Any] | None = None) -> None:
        self.kinds: dict[str, dict[str, Any]] = {}
        self.update(facts or {})

    def __setitem__(self, name: str, value: Any) -> None:
        kind, _colon, rest = name.partition(":")
        self.kinds.setdefault(kind, {})[rest] = value
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        kind, _colon, rest = name.partition(":")
        del self.kinds[kind][rest]

    def pop(self, name: str, default: Any = None) -> Any:
        """Remove a fact and return it, or the default without it."""
        value = self.get(name, default)
        if name in self:
            del self[name]
        return value

    def update(self, facts: dict[str, Any]) -> None:  # type: ignore[override]
        """Set these facts."""
        for name, value in facts.items():
            self[name] = value

    def clear(self) -> None:
        """Remove all facts."""
        super().clear()
        self.kinds.clear()


class Facts:
    """The facts of a machine by name, and the fuse."""

    def __init__(self, path: AnyPath | None = None) -> None:
        self.path = None if path is None else os.fspath(path)
        self.memory = FactTable()
        self._identity: tuple[int, int] = (0, 0)  # of the file that the memory was read from

    def get(self, name: str) -> Any:
        """Return a fact; None when there is none of this name."""
        if self.path is None:
            return self.memory.get(name)
        with self._open(write=False) as facts:
            return facts.get(name)

    def names(self, kind: str) -> list[str]:
        """Return the names of all facts of a kind, without "KIND:"."""
        return list(self.of_kind(kind))

    def of_kind(self, kind: str) -> dict[str, Any]:
        """Return all facts of a kind at one moment, by their names without "KIND:"."""
        with self._open(write=False) as facts:
            return dict(facts.kinds.get(kind, {}))

    def users(self, owner: str, kind: str) -> list[str]:
        """Return the users of a disk, by its serial, or of a zvol, by its dataset.

        Of the kernel (a holder, a loop device), processes, or those that are hidden.
        """
        users = self.of_kind("user").items()
        return [name for name, user in sorted(users) if user == {"of": owner, "kind": kind}]

    def effect(
        self,
        name: str,
        value: Any,
        *,
        instead_of: str = "",
        also: dict[str, Any] | None = None,
    ) -> None:
        """Set one fact (None: remove it), unless the fuse blows before.

        `instead_of` is removed in the same effect: the fact is renamed. `also`: more facts that
        one tool changes with it.
        """
        with self._open(write=True) as facts:
            blown = _burn(facts)
            if blown != "before":
                facts.pop(instead_of, None)
                for changed, new in {name: value, **(also or {})}.items():
                    facts.pop(changed, None)
                    if new is not None:
                        facts[changed] = new
        if blown:
            if facts["blown"] == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                return
            if facts["blown"] == "kill":
                self.kill()
            raise CommandFailed("the fuse of the simulated host blew")

    def light_fuse(self, effects: int, *, when: str, how: str, then: tuple[int, ...] = ()) -> None:
        """Fail at the n-th effect from now: `when` is before or after.

        `how`: error, kill, or stop: the process stops after the effect until SIGCONT.
        `then`: the numbers of effects until each further failure.
        """
        with self._open(write=True) as facts:
            facts["fuse"] = {"in": effects, "when": when, "how": how, "then": list(then)}

    def douse(self) -> bool:
        """Remove the fuse, and tell whether it had not blown yet."""
        with self._open(write=True) as facts:
            return facts.pop("fuse", None) is not None

    def reboot(self) -> None:
        """Remove the volatile facts, as a reboot does."""
        with self._open(write=True) as facts:
            for name in [name for name in facts if name.partition(":")[0] in VOLATILE]:
                del facts[name]

    def snapshot(self) -> dict[str, Any]:
        """Return all facts without the fuse."""
        with self._open(write=False) as facts:
            items = list(facts.items())
        return {name: value for name, value in items if name not in ("fuse", "blown")}

    def kill(self) -> None:
        """Kill this process; tests replace this method to raise an exception."""
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[FactTable]:
        if self.path is None:
            yield self.memory
            return
        stem = self.path.removesuffix(".json")
        lock = os.open(f"{stem}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
            identity = _identity(self.path)
            if identity != self._identity:  # another process has written the file
                facts = record_json.loads(read_text(self.path)) if exists(self.path) else {}
                self.memory = FactTable(facts)
                self._identity = identity
            yield self.memory
            if write:
                with open(f"{stem}.new", "wb") as file:
                    file.write(record_json.dumps(self.memory))
                os.replace(f"{stem}.new", self.path)
                self._identity = _identity(self.path)
        except BaseException:
            self._identity = (0, 0)
            raise
        finally:
            os.close(lock)


def _identity(path: str) -> tuple[int, int]:
    """Return inode and mtime of a file, which differ after each write; (0, 0) without the file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return status.st_ino, status.st_mtime_ns


def _burn(facts: dict[str, Any]) -> str | None:
    """Count the effects of the fuse down; return when it blows, None when it does not."""
    fuse = facts.get("fuse")
    if not fuse:
        return None
    if fuse["in"] > 1:
        fuse["in"] -= 1
        return None
    del facts["fuse"]
    if fuse["then"]:
        first, *later = fuse["then"]
        facts["fuse"] = fuse | {"in": first, "then": later}
    facts["blown"] = fuse["how"]
    return str(fuse["when"])

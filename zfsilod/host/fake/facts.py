"""The facts of a simulated machine, in a file or in memory, and the fuse that blows at an effect.

Each change of one fact is one effect, as each system call or tool is on a real host. A fuse fails
or kills at the n-th effect.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VOLATILE = (
    "backstore",
    "target",
    "lun",
    "portals",
    "enabled",
    "acl",
    "mapped",
    "session",
    "mount",
    "outdated",
)


class Facts:
    """The facts of a machine by name, and the fuse."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.memory: dict[str, Any] = {}
        self._seen: tuple[int, int] = (0, 0)  # which file the memory is of

    def get(self, name: str) -> Any:
        """Return a fact, or None."""
        with self._open(write=False) as facts:
            return facts.get(name)

    def names(self, kind: str) -> list[str]:
        """Return what follows the colon in the names of all facts of a kind."""
        with self._open(write=False) as facts:
            return [name.partition(":")[2] for name in list(facts) if name.startswith(f"{kind}:")]

    def each(self, kind: str) -> dict[str, Any]:
        """Return all facts of a kind, of one moment, by what follows the colon in their names."""
        with self._open(write=False) as facts:
            split = [(*name.partition(":"), value) for name, value in list(facts.items())]
            return {name: value for found, _colon, name, value in split if found == kind}

    def effect(self, name: str, value: Any, *, instead_of: str = "") -> None:
        """Change one fact (None: remove it), unless the fuse blows first.

        `instead_of`: another name that it had; a thing is renamed in one effect.
        """
        with self._open(write=True) as facts:
            blown = _burn(facts)
            if blown != "before":
                facts.pop(instead_of, None)
                facts.pop(name, None)
                if value is not None:
                    facts[name] = value
        if blown:
            self._blow(facts["blown"])

    def light_fuse(self, effects: int, *, when: str, how: str, then: tuple[int, ...] = ()) -> None:
        """Fail at the n-th effect from now: when is before or after it, how is error or kill.

        `then`: and again, each time so many effects later.
        """
        with self._open(write=True) as facts:
            facts["fuse"] = {"in": effects, "when": when, "how": how, "then": list(then)}

    def douse(self) -> bool:
        """Take the fuse away; tell whether it had not burnt down yet."""
        with self._open(write=True) as facts:
            return facts.pop("fuse", None) is not None

    def reboot(self) -> None:
        """Forget what a kernel forgets."""
        with self._open(write=True) as facts:
            for name in [n for n in facts if n.partition(":")[0] in VOLATILE]:
                del facts[name]

    def snapshot(self) -> dict[str, Any]:
        """Return all facts, without the fuse."""
        with self._open(write=False) as facts:
            return {n: v for n, v in list(facts.items()) if n not in ("fuse", "blown")}

    def _blow(self, how: str) -> None:
        if how == "kill":
            self.kill()
        raise CommandFailed("the fuse of the simulated host blew")

    def kill(self) -> None:
        """Die as by SIGKILL; in-process tests put an exception here."""
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[dict[str, Any]]:
        if self.path is None:
            yield self.memory
            return
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
            self._refresh(self.path)
            yield self.memory
            if write:
                new = self.path.with_suffix(".new")
                new.write_text(json.dumps(self.memory))
                new.replace(self.path)
                self._seen = _identity(self.path)
        except BaseException:
            self._seen = (0, 0)
            raise
        finally:
            os.close(lock)

    def _refresh(self, path: Path) -> None:
        """Read the file again when somebody else has written it."""
        identity = _identity(path)
        if identity != self._seen:
            self.memory = json.loads(path.read_text()) if path.exists() else {}
            self._seen = identity


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells one writing of the file from the next: each makes a new file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_ino, found.st_mtime_ns


def _burn(facts: dict[str, Any]) -> str | None:
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

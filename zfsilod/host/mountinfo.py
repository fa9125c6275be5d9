"""The mounts of this host: /proc/self/mountinfo, as proc_pid_mountinfo(5) describes it."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
ESCAPE = re.compile(r"\\([0-7]{3})")
DELETED = "//deleted"  # ends the root of a bind mount whose file is gone


class Mount:
    """One line of mountinfo."""

    def __init__(self, line: str) -> None:
        before, _, after = line.partition(" - ")
        self.id, self.parent, self.number, root, path, options = before.split(" ")[:6]
        self.root, self.path = _plain(root), _plain(path)
        self.options = frozenset(options.split(","))
        self.type, source, of_filesystem = after.split(" ")[:3]
        self.source = _plain(source)
        self._of_filesystem = frozenset(of_filesystem.split(","))

    @property
    def readonly(self) -> bool:
        """Whether this mount is read-only, whatever its filesystem is."""
        return "ro" in self.options

    @property
    def stopped(self) -> bool:
        """Whether the filesystem itself takes no writes: so made, or so turned by an error."""
        return not {"ro", "emergency_ro", "shutdown"}.isdisjoint(self._of_filesystem)


def read(path: Path = MOUNTINFO) -> list[Mount]:
    """Return all mounts, later ones last."""
    text = path.read_bytes().decode(errors="surrogateescape")
    return [Mount(line) for line in text.split("\n") if line]


def at(path: str, mounts: list[Mount]) -> Mount | None:
    """Return what one sees at a path that is a mount point: the last mount there."""
    return next((each for each in reversed(mounts) if each.path == path), None)


def _plain(text: str) -> str:
    r"""Undo the escapes of mountinfo: \040 for a space."""
    return ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)

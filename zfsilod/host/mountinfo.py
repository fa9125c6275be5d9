"""The mounts of this host: /proc/self/mountinfo, proc_pid_mountinfo(5)."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath

MOUNTINFO = "/proc/self/mountinfo"
OCTAL = frozenset("01234567")
ESCAPE_DIGITS = 3
DELETED = "//deleted"  # the end of the root of a bind mount whose file was removed


class MountEntry:
    """One line of mountinfo: the fields (1) to (6), and (9) to (11) after the separator.

    `number` is the device number as major:minor, `root` the path within the filesystem.
    """

    def __init__(self, line: str) -> None:
        before, _, after = line.partition(" - ")
        self.id, self.parent, self.number, root, path, options = before.split(" ")[:6]
        self.root, self.path = unescape(root), unescape(path)
        self.options = frozenset(options.split(","))
        self.type, source, super_options = after.split(" ")[:3]
        self.source = unescape(source)
        self._super_options = frozenset(super_options.split(","))

    @property
    def readonly(self) -> bool:
        """Whether this mount is read-only; its filesystem may be writable."""
        return "ro" in self.options

    @property
    def stopped(self) -> bool:
        """Whether the filesystem refuses writes: mounted read-only, or after an error."""
        return not {"ro", "emergency_ro", "shutdown"}.isdisjoint(self._super_options)


def read(path: AnyPath = MOUNTINFO) -> list[MountEntry]:
    """Return all mounts, the latest last."""
    with open(path, "rb") as file:
        text = file.read().decode(errors="surrogateescape")
    return [MountEntry(line) for line in text.split("\n") if line]


def at(path: str, mounts: list[MountEntry]) -> MountEntry | None:
    """Return the topmost mount at a path; None when the path is not a mount point."""
    return next((mount for mount in reversed(mounts) if mount.path == path), None)


def unescape(text: str) -> str:
    r"""Replace the octal escapes of mountinfo and swaps, such as \040 for a space."""
    first, *pieces = text.split("\\")
    return first + "".join(map(_unescape_piece, pieces))


def _unescape_piece(piece: str) -> str:
    digits, rest = piece[:ESCAPE_DIGITS], piece[ESCAPE_DIGITS:]
    if len(digits) == ESCAPE_DIGITS and OCTAL.issuperset(digits):
        return chr(int(digits, 8)) + rest
    return f"\\{piece}"

"""Test doubles of control groups, and of the unit whose group has those of limits."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.host.doubles import Interrupted, ScriptedRunner
from zfsilod.host.configfs import Configfs
from zfsilod.host.io_limits import GROUP, KEEPER, UNIT, UNIT_GROUP, line, parse
from zfsilod.model.errors import CommandFailed

if TYPE_CHECKING:
    from pathlib import Path

KEEPING = "700"  # the process of the unit
START, STOP = (f"systemctl {verb} {UNIT}" for verb in ("start", "stop"))


class FakeGroups(Configfs):
    """Control groups with the rules of cgroup v2 that matter here.

    `calls` is the number of changes that succeed; the next one raises Interrupted.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, "the kernel's control groups")
        self.folder = root
        self.calls: int | None = None
        self.gone: set[str] = set()  # threads that end before they are moved
        self.has_io = True
        self.fill(root)

    def fill(self, folder: Path) -> None:
        """Make the files of a new group."""
        for name in ("cgroup.procs", "cgroup.subtree_control"):
            (folder / name).write_text("")
        (folder / "cgroup.controllers").write_text("io\n" if self.has_io else "cpu\n")

    def count(self) -> None:
        """Count a change."""
        if self.calls is not None:
            if self.calls == 0:
                raise Interrupted
            self.calls -= 1

    def members(self, group: str = ".") -> set[str]:
        """Return the processes of a group."""
        return set((self.folder / group / "cgroup.procs").read_text().split())

    def put(self, group: str, *processes: str) -> None:
        """Move processes to a group."""
        for file in [*self.folder.rglob("cgroup.procs")]:
            left = set(file.read_text().split()) - {*processes}
            wanted = left | set(processes) if file.parent == self.folder / group else left
            file.write_text("".join(f"{process}\n" for process in sorted(wanted)))

    def read(self, path: str) -> str | None:
        """Return an attribute."""
        if path.endswith("/cgroup.events") and self.has(path.rpartition("/")[0]):
            populated = bool(self.members(path.rpartition("/")[0]))
            return f"populated {int(populated)}\nfrozen 0"
        return super().read(path)

    def write(self, path: str, value: str) -> None:
        """Set an attribute."""
        self.count()
        group, _slash, name = path.rpartition("/")
        if name == "cgroup.procs":
            if value in self.gone:
                raise CommandFailed("no such process", errno="ESRCH")
            self.put(group, value)
        elif name == "cgroup.subtree_control":
            assert value == "-io" or not self.members(group), "EBUSY: the group has processes"
            (self.folder / path).write_text(value.replace("-io", "").removeprefix("+"))
        else:
            self._limit(self.folder / path, value)

    def _limit(self, file: Path, text: str) -> None:
        number, limits = parse(text)
        lines = dict(map(parse, file.read_text().splitlines())) | {number: limits}
        lines = {one: its for one, its in lines.items() if its}
        file.write_text("".join(f"{line(*one)}\n" for one in lines.items()))

    def make(self, path: str) -> None:
        """Make a group."""
        self.count()
        folder = self.folder / path
        if not folder.exists():
            folder.mkdir()
            self.fill(folder)
            if (folder.parent / "cgroup.subtree_control").read_text() == "io":
                (folder / "io.max").write_text("")

    def remove(self, path: str) -> None:
        """Remove a group without processes and groups."""
        self.count()
        folder = self.folder / path
        if folder.exists():
            assert not self.members(path), "EBUSY: the group has processes"
            assert not [one for one in folder.iterdir() if one.is_dir()], "EBUSY: it has groups"
            shutil.rmtree(folder)


class Systemd(ScriptedRunner):
    """Starts and stops the unit, in any order."""

    def __init__(self, groups: FakeGroups) -> None:
        super().__init__()
        self.groups = groups
        self.commands: list[str] = []

    def __call__(self, argv: list[str], **how: object) -> object:  # type: ignore[override]
        """Start or stop the unit, which has its group while it has a process."""
        self.groups.count()
        command = " ".join(argv)
        self.commands.append(command)
        unit = self.groups.folder / UNIT_GROUP
        if command == START:
            if not unit.exists():
                unit.mkdir(parents=True)
                self.groups.fill(unit)
            control = (unit / "cgroup.subtree_control").read_text()
            is_running = KEEPING in self.groups.members(KEEPER) if (unit / "keeper").exists() else 0
            assert is_running or not control, "EBUSY: no process can start in the group"
            if not is_running:
                self.groups.put(UNIT_GROUP, KEEPING)
            return None
        assert command == STOP
        if unit.exists():
            self.groups.put("nowhere", KEEPING)
            if not self.groups.members(GROUP) if (unit / "volumes").exists() else True:
                shutil.rmtree(unit)
        return None

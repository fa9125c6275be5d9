"""A zfs(8) over a table of datasets, as a Runner that counts the processes it stands for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from zfsilod.host.run import Completed, Runner

GUID = 1000  # of the first dataset
LOCAL, NONE = "local", "-"


class ZfsTool(Runner):
    """Answers `zfs get`, `create`, `set`, `inherit`, `rename` and `destroy` of zvols."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.starts: list[str] = []  # the words after "zfs" that tell a command: "get", "set"
        self.datasets: dict[str, dict[str, tuple[str, str]]] = {}
        self.add(pool, "filesystem")

    def add(self, name: str, kind: str, properties: dict[str, str] | None = None) -> None:
        """Add a dataset."""
        own = {one: (value, LOCAL) for one, value in (properties or {}).items()}
        guid = str(GUID + len(self.datasets))
        self.datasets[name] = {"type": (kind, NONE), "guid": (guid, NONE)} | own

    def __call__(
        self,
        argv: list[str],
        *,
        timeout_s: float,
        input: str | bytes = "",  # noqa: A002 - as in Runner
        ok: tuple[int, ...] = (0,),
        inherit: tuple[int, ...] = (),
    ) -> Completed:
        """Answer a command."""
        assert timeout_s > 0
        tool, command, *words = argv
        assert tool == "zfs"
        self.starts.append(command)
        rc, stdout, stderr = getattr(self, f"do_{command}")(words)
        completed = Completed(tuple(argv), rc, stdout, stderr)
        if rc not in ok:
            raise completed.failed()
        return completed

    def do_get(self, words: list[str]) -> tuple[int, str, str]:
        asked, *names = words[words.index("-o") + 2 :]
        rows, missing = [], ""
        for name in names:
            if name not in self.datasets:
                missing += f"cannot open '{name}': dataset does not exist\n"
                continue
            for one in asked.split(","):
                value, source = self.datasets[name].get(one, (NONE, NONE))
                rows.append(f"{name}\t{one}\t{value}\t{source}\n")
        return bool(missing), "".join(rows), missing

    def do_create(self, words: list[str]) -> tuple[int, str, str]:
        options = [word for before, word in pairwise(words) if before == "-o"]
        if words[-1] in self.datasets:
            return 1, "", f"cannot create '{words[-1]}': dataset already exists\n"
        kind = "volume" if "-V" in words else "filesystem"
        self.add(words[-1], kind, dict(option.split("=", 1) for option in options))
        if "-V" in words:
            self.datasets[words[-1]]["volsize"] = (words[words.index("-V") + 1], LOCAL)
        return 0, "", ""

    def do_set(self, words: list[str]) -> tuple[int, str, str]:
        setting, name = words
        key, _equals, value = setting.partition("=")
        self.datasets[name][key] = (value, LOCAL)
        return 0, "", ""

    def do_inherit(self, words: list[str]) -> tuple[int, str, str]:
        self.datasets[words[1]].pop(words[0], None)
        return 0, "", ""

    def do_rename(self, words: list[str]) -> tuple[int, str, str]:
        self.datasets[words[1]] = self.datasets.pop(words[0])
        return 0, "", ""

    def do_destroy(self, words: list[str]) -> tuple[int, str, str]:
        del self.datasets[words[0]]
        return 0, "", ""

    def call(self, *_args: Any, **_options: Any) -> Completed:
        """Refuse: zfs makes no system call in a process of its own."""
        raise AssertionError("no such call is expected")

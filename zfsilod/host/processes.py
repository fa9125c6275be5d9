"""Which processes use a path: for the sentence of an error, as far as it can be told quickly."""

from __future__ import annotations

import time
from pathlib import Path

PROC = Path("/proc")
MAX_FOUND = 5
BUDGET_S = 2.0


def using(path: str, proc: Path = PROC) -> list[str]:
    """Return some of the processes with a folder or file open below a path: "bash (123)"."""
    end = time.monotonic() + BUDGET_S
    found: list[str] = []
    # The newest first: what keeps a mount busy was mostly started after it.
    for process in sorted(proc.glob("[0-9]*"), key=lambda each: -int(each.name)):
        if len(found) == MAX_FOUND or time.monotonic() > end:
            break
        if any(each == path or each.startswith(f"{path}/") for each in _opened(process)):
            found.append(f"{_name(process)} ({process.name})")
    return found


def _opened(process: Path) -> list[str]:
    opened = []
    try:
        links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
    except OSError:
        return []  # it has ended
    for link in links:
        try:
            opened.append(str(link.readlink()))
        except OSError:
            continue  # a kernel thread, or closed meanwhile
    return opened


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a process"

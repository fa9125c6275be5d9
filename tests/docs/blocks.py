"""The indented blocks of the documentation, each with the state of a host that it is for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TOP = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))
PAGES = (*TOP, *sorted((ROOT / "docs").rglob("*.md")))
MANUAL = sorted((ROOT / "docs/man").glob("*.[158]"))
# Their readers have a clone of the repository; those of the other pages have the package.
FOR_DEVELOPERS = (*TOP, ROOT / "docs/testing.md")
MARK = re.compile(r"""^(?:<!--|\.\\") test: ([a-z-]+)""")
PROMPT = re.compile(r"^(?:give|take|node|new)# ", re.M)
TRANSCRIPT = "$ "


class Block(NamedTuple):
    """A block of a page."""

    page: Path
    line: int
    state: str  # what <!-- test: ... --> in front of it names, or that of the page
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines, without prompts; a line that continues in the next is joined with it."""
        lines = PROMPT.sub("", self.text.replace("\\\n", "")).splitlines()
        return [line for line in lines if line.strip()]

    @property
    def is_transcript(self) -> bool:
        """Whether it shows commands with their output."""
        return self.text.startswith(TRANSCRIPT)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page."""
    parsed: list[Block] = []
    lines: list[str] = []
    default = "nothing" if path in FOR_DEVELOPERS else "installed"
    state, start = default, 0
    text = path.read_text().replace("\\-", "-") if path in MANUAL else path.read_text()
    for number, line in enumerate([*text.splitlines(), "end"], 1):
        if line.startswith("    ") or (lines and not line.strip()):
            start = start if lines else number
            lines.append(line[4:])
            continue
        if lines:
            parsed.append(Block(path, start, state, "\n".join(lines).strip("\n")))
            lines, state = [], default
        if mark := MARK.search(line):
            state = mark[1]
    return parsed


ALL = [block for page in (*PAGES, *MANUAL) for block in blocks(page)]

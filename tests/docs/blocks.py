"""The indented blocks of a page, Markdown or manual, and the state of a host that each is for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "units/doc").glob("*.md")))
MANUAL = sorted((ROOT / "units/doc").glob("*.[158]"))
MARK = re.compile(r"""(?:<!--|\.\\") test: ([a-z-]+)""")
PROMPT = re.compile(r"^(?:give|take|node)# ", re.M)


class Block(NamedTuple):
    """A block of a page."""

    page: str
    line: int
    state: str  # what <!-- test: ... --> in front of it names, or "nothing"
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines, without prompts; one that goes on in the next is one."""
        return PROMPT.sub("", self.text.replace("\\\n", "")).splitlines()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page."""
    found: list[Block] = []
    lines: list[str] = []
    state, begun = "nothing", 0
    text = path.read_text().replace("\\-", "-") if path in MANUAL else path.read_text()
    for number, line in enumerate([*text.splitlines(), "end"], 1):
        if line.startswith("    ") or (lines and not line.strip()):
            begun = begun if lines else number
            lines.append(line[4:])
            continue
        if lines:
            found.append(Block(path.name, begun, state, "\n".join(lines).strip("\n")))
            lines, state = [], "nothing"
        if status := MARK.search(line):
            state = status[1]
    return found


ALL = [block for page in (*PAGES, *MANUAL) for block in blocks(page)]

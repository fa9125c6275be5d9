"""Fake system tools that log their calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """\
#!/bin/sh
echo "$(basename "$0") $*" >> {log}
{body}
"""


class FakeTools:
    """A directory of fake tools, and the log of their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tools"
        self.folder.mkdir()
        self._log = folder / "log"
        self("systemctl", "exit 0")

    def __call__(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(SCRIPT.format(log=self._log, body=body))
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

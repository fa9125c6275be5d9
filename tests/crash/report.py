"""What the crash tests found: a table of requests by kinds of faults, and one line in the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Literal

Size = Literal["short", "full", "long"]  # of a run: make test, make crash, make crash-long


class Report:
    """Counts cases by request and kind, and shows each one that failed as soon as it did."""

    def __init__(self) -> None:
        self.passed: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()
        self.notes: list[str] = []
        self._began = time.monotonic()

    def case(self, request: str, kind: str, problem: str = "") -> None:
        """Count one case; `problem` says what was wrong afterwards ("": nothing)."""
        (self.failed if problem else self.passed)[request, kind] += 1
        if problem:
            self.say(f"FAILED {request}, {kind}: {problem}")

    def note(self, line: str) -> None:
        """Keep a line for the end: a seed, a figure."""
        self.notes.append(line)
        self.say(line)

    def say(self, line: str) -> None:
        """Show progress at once."""
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def add(self, other: Report) -> None:
        """Count what another report counted, whose lines were shown already."""
        self.passed += other.passed
        self.failed += other.failed
        self.notes += other.notes

    def table(self) -> str:
        """Return the cases as a table: requests down, kinds across, "failed/all" where some failed."""
        found = self.passed | self.failed
        kinds = sorted({kind for _request, kind in found})
        rows = [["request", *kinds]]
        for request in sorted({request for request, _kind in found}):
            rows.append([request, *(self._cell(request, kind) for kind in kinds)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(kinds) + 1)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _cell(self, request: str, kind: str) -> str:
        failed = self.failed[request, kind]
        total = failed + self.passed[request, kind]
        return f"{failed}/{total}" if failed else str(total or "")

    def close(self) -> int:
        """Show table, notes and the closing line; return the exit code."""
        self.say("\n".join(["", self.table(), "", *self.notes]))
        failed = self.failed.total()
        self.say(f"in {time.monotonic() - self._began:.0f} s")
        self.say(f"{self.passed.total()} passed, {failed} failed")
        return 1 if failed else 0

"""Report of the crash tests: a table of requests by kinds of faults, and a closing line."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Literal

Size = Literal["short", "full", "long"]  # of make test, make crash, make crash-long


class CrashReport:
    """Counts cases by request and kind, and prints each failed case at once."""

    def __init__(self) -> None:
        self.passed: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()
        self.notes: list[str] = []
        self._started = time.monotonic()

    def case(self, request: str, kind: str, problem: str = "") -> None:
        """Count one case; a `problem` that is not empty makes it a failed one."""
        (self.failed if problem else self.passed)[request, kind] += 1
        if problem:
            self.say(f"FAILED {request}, {kind}: {problem}")

    def note(self, line: str) -> None:
        """Print a line, such as the seed, and print it again at the end."""
        self.notes.append(line)
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line at once."""
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def add(self, other: CrashReport) -> None:
        """Add the counts and notes of another report, whose lines are printed already."""
        self.passed += other.passed
        self.failed += other.failed
        self.notes += other.notes

    def table(self) -> str:
        """Return a table of requests by kinds, with "failed/all" where a case failed."""
        counts = self.passed | self.failed
        kinds = sorted({kind for _request, kind in counts})
        rows = [["request", *kinds]]
        for request in sorted({request for request, _kind in counts}):
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
        """Print the table, the notes and the closing line; return the exit code."""
        self.say("\n".join(["", self.table(), "", *self.notes]))
        failed = self.failed.total()
        self.say(f"in {time.monotonic() - self._started:.0f} s")
        self.say(f"{self.passed.total()} passed, {failed} failed")
        return 1 if failed else 0

"""What the crash tests found: a table of verbs by kinds of faults, and one line in the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Literal

Size = Literal["short", "full", "long"]  # of a run: make test, make crash, make crash-long


class Report:
    """Counts cases by verb and kind, and shows each one that failed as soon as it did."""

    def __init__(self) -> None:
        self.passed: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()
        self.notes: list[str] = []
        self._began = time.monotonic()

    def case(self, verb: str, kind: str, problem: str = "") -> None:
        """Count one case; `problem` says what was wrong afterwards ("": nothing)."""
        (self.failed if problem else self.passed)[verb, kind] += 1
        if problem:
            self.say(f"FAILED {verb}, {kind}: {problem}")

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
        """Return the cases as a table: verbs down, kinds across, "failed/all" where some failed."""
        found = self.passed | self.failed
        kinds = sorted({kind for _verb, kind in found})
        rows = [["verb", *kinds]]
        for verb in sorted({verb for verb, _kind in found}):
            rows.append([verb, *(self._cell(verb, kind) for kind in kinds)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(kinds) + 1)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _cell(self, verb: str, kind: str) -> str:
        failed = self.failed[verb, kind]
        total = failed + self.passed[verb, kind]
        return f"{failed}/{total}" if failed else str(total or "")

    def close(self) -> int:
        """Show table, notes and the closing line; return the exit code."""
        self.say("\n".join(["", self.table(), "", *self.notes]))
        failed = self.failed.total()
        self.say(f"in {time.monotonic() - self._began:.0f} s")
        self.say(f"{self.passed.total()} passed, {failed} failed")
        return 1 if failed else 0

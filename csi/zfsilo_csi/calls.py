"""One call of the plugin: how long it may take, and what its line in the log says."""

from __future__ import annotations

import time
from typing import Any

DEFAULT_S = 60.0
ANSWER_S = 0.5  # before the caller's deadline, so that our answer still reaches it


class Call:
    """One call: its deadline, and what was learned on the way."""

    def __init__(self, context: Any) -> None:
        left = context.time_remaining()
        self._begun = time.monotonic()
        self._until = self._begun + (DEFAULT_S if left is None else float(left) - ANSWER_S)
        self.notes: dict[str, str] = {}

    @property
    def left_s(self) -> float:
        """How long a zfsilod may still take."""
        return self._until - time.monotonic()

    @property
    def took_s(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._begun

    def note(self, **facts: str) -> None:
        """Keep facts for the log: ids of volumes, nodes and operations, nothing else."""
        self.notes |= {name: value for name, value in facts.items() if value}


def short(call: Call, timeout_s: float) -> Call:
    """Return a call that ends sooner, for a question that need not be answered."""
    copy = Call.__new__(Call)
    copy._begun = call._begun
    copy._until = min(call._until, time.monotonic() + timeout_s)
    copy.notes = call.notes
    return copy

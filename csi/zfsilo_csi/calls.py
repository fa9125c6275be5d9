"""One CSI call: its deadline, and the ids that its log line names."""

from __future__ import annotations

import copy
import time
from typing import Any

DEFAULT_S = 60.0
MAX_NOTE_CHARACTERS = 256
REPLY_S = 0.5  # reserved before the caller's deadline, so that the reply still arrives


class CsiCall:
    """One call of a CSI method."""

    stream_s: float | None = None  # left for a stream, which may last as long as its caller wants

    def __init__(self, context: Any) -> None:
        left = context.time_remaining()
        self.stream_s = left
        self._begin(DEFAULT_S if left is None else float(left) - REPLY_S)

    def _begin(self, left_s: float) -> None:
        self._started = time.monotonic()
        self._deadline = self._started + left_s
        self.notes: dict[str, str] = {}

    @classmethod
    def of_plugin(cls, timeout_s: float) -> CsiCall:
        """Return a call that the plugin itself makes, without a caller."""
        call = cls.__new__(cls)
        call._begin(timeout_s)
        return call

    @property
    def left_s(self) -> float:
        """Time left for requests to zfsilod."""
        return self._deadline - time.monotonic()

    @property
    def took_s(self) -> float:
        """Time since the call arrived."""
        return time.monotonic() - self._started

    def note(self, **facts: str) -> None:
        """Add facts to the log line: ids of volumes, nodes and operations, nothing else."""
        self.notes |= {name: value[:MAX_NOTE_CHARACTERS] for name, value in facts.items() if value}

    def at_most(self, timeout_s: float) -> CsiCall:
        """Return a view of this call with an earlier deadline, for an optional request."""
        shorter = copy.copy(self)
        shorter._deadline = min(self._deadline, time.monotonic() + timeout_s)
        return shorter

"""Rounds of a bench: as many as its share of the time allows, and at least one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def rounds(most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """Yield 0, 1, ..., fewer than `most`; no further one that would end after so many seconds."""
    start = clock()
    for number in range(most):
        taken = clock() - start
        if number and taken + taken / number > seconds:
            return
        yield number

"""Ctrl-C that is heard: grpc swallows what is raised while one of its callbacks runs."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

AGAIN_S = 0.3


@contextmanager
def insistent() -> Iterator[None]:
    """Have a KeyboardInterrupt raised again until it is `heard`; for the main thread only."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # whoever started us wants it ignored
        return

    def ring(_signal: int, _frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, ring)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        heard()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, before)


def heard() -> None:
    """Stop raising it."""
    signal.setitimer(signal.ITIMER_REAL, 0)

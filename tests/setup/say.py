"""Progress messages of the set-up, on standard error."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT_S = 30.0  # a slow action shows as often that it lives


def say(text: str) -> None:
    """Print one line; standard output stays free for the result."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Print the title of a slow action, that it still runs, and afterwards its duration."""
    say(f"{title} ...")
    started, ended = time.monotonic(), threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            say(f"{title}: still running after {time.monotonic() - started:.0f} s")

    beats = threading.Thread(target=beat, daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
    say(f"{title}: {time.monotonic() - started:.1f} s")

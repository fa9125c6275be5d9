"""What the set-up tells the person at the terminal, always on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def say(text: str) -> None:
    """Print one line; standard output stays free for the result."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Announce a slow piece of work and tell afterwards how long it took."""
    say(f"{title} ...")
    begun = time.monotonic()
    yield
    say(f"{title}: {time.monotonic() - begun:.1f} s")

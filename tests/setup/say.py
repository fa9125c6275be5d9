"""Progress messages of the set-up, on standard error."""

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
    """Print the title of a slow action, and afterwards its duration."""
    say(f"{title} ...")
    started = time.monotonic()
    yield
    say(f"{title}: {time.monotonic() - started:.1f} s")

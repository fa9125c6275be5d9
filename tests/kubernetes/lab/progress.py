"""Lines that tell how far a run of many minutes has come."""

from __future__ import annotations

import time

STARTED = time.monotonic()


def say(text: str) -> None:
    """Print one line with the seconds since the start of the run."""
    print(f"{time.monotonic() - STARTED:6.0f} s  {text}", flush=True)

"""Ages and points in time, as text."""

from __future__ import annotations

import time

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.ctl.messages import Stamp


def show_age(seconds: int) -> str:
    """Return a time span in its largest unit: 42s, 7m, 3h, 12d."""
    if seconds < 0:  # the clocks of two hosts differ
        return "0s"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def age(stamp: Stamp) -> str:
    """Return the time since a timestamp, or "" when it is not set."""
    return show_age(int(time.time()) - stamp.seconds) if stamp.seconds else ""


def when(stamp: Stamp) -> str:
    """Return a timestamp in UTC with its age, or "" when it is not set."""
    return f"{at(stamp)} ({age(stamp)} ago)" if stamp.seconds else ""


def at(stamp: Stamp) -> str:
    """Return a timestamp in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stamp.seconds))


def left(expires_at: int) -> str:
    """Return the remaining validity of a token or certificate; `expires_at` 0: no expiry."""
    if not expires_at:
        return "no expiry"
    remaining = expires_at - int(time.time())
    return show_age(remaining) if remaining > 0 else "expired"


def rfc3339(seconds: int) -> str:
    """Return a time in seconds since 1970 as protobuf's JSON writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

"""Questions on the terminal before data is destroyed or a host is changed."""

from __future__ import annotations

import sys

from zfsilod.model.errors import InvalidArgument


def confirmed(question: str, *, default: bool = False) -> bool:
    """Ask a question; an empty answer is the default. Raises InvalidArgument without a terminal."""
    if not sys.stdin.isatty():
        raise InvalidArgument("not a terminal; pass --yes to confirm", reason="UNCONFIRMED")
    sys.stderr.write(f"{question} {'[Y/n]' if default else '[y/N]'} ")
    sys.stderr.flush()
    answer = sys.stdin.readline().strip().lower()
    agreed = answer in ("y", "yes") or (default and not answer)
    if not agreed:
        sys.stderr.write("zfsiloctl: cancelled; nothing was changed\n")
    return agreed

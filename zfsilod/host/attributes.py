"""The attributes that the kernel shows as files: sysfs(5), proc(5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path) -> str:
    """Return an attribute without its newline; "" when it does not exist any more."""
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError:
        return ""

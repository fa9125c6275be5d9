"""The check of a mount path. Pure."""

from __future__ import annotations

from zfsilod.model.errors import InvalidArgument

MAX_PATH_BYTES = 4095  # PATH_MAX without its NUL: limits.h(0p)
STAGING = "/var/lib/zfsilo/staging/"
CLOSED = ("/proc/", "/sys/", "/dev/", "/run/zfsilo/", "/var/lib/zfsilo/")
"""Folders in which nothing is mounted: kernel interfaces, and what zfsilod itself relies on."""


def check_path(path: str) -> str:
    """Return a normalised mount path, else raise InvalidArgument: absolute, without ".."."""
    parts = path.split("/")
    length = len(path.encode(errors="replace"))  # what is not UTF-8 is not printable: below
    if not path.startswith("/") or ".." in parts or length > MAX_PATH_BYTES:
        raise InvalidArgument(
            f"invalid mount path {path[:200]!r}; use an absolute path without ..",
            reason="BAD_PATH",
        )
    normal = "/" + "/".join(part for part in parts if part not in ("", "."))
    if not path.isprintable() or normal == "/":
        raise InvalidArgument(f"invalid mount path {path[:200]!r}", reason="BAD_PATH")
    if normal.startswith(STAGING) or not f"{normal}/".startswith(CLOSED):
        return normal
    raise InvalidArgument(
        f"{path[:200]!r} is below a folder of the kernel or of zfsilod; use another mount path",
        reason="BAD_PATH",
    )

"""The attributes that the kernel shows as files: sysfs(5), proc(5)."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath


def read(path: AnyPath) -> str:
    """Return an attribute without its newline; "" when it does not exist any more."""
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def write(path: AnyPath, value: str) -> None:
    """Set an attribute. Raises OSError."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(value)

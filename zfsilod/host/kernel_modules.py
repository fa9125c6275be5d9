"""The modules that the kernel of a host has: modprobe(8)."""

from __future__ import annotations

import os

from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import exists, read_text

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath

INDEXES = ("modules.dep", "modules.builtin")  # of those that can be loaded, and of built-in ones


def has_module(name: str, *, root: AnyPath = "/", release: str = "") -> bool:
    """Tell whether a kernel module is loaded, built in, or can be loaded.

    `release`: of the kernel; "": of the running one.
    """
    root = os.fspath(root).rstrip("/")
    if exists(f"{root}/sys/module/{name}"):
        return True
    folder = f"{root}/lib/modules/{release or os.uname().release}"
    files = (name, name.replace("_", "-"))
    return any(
        f"/{file}.ko" in text
        for text in (_text(f"{folder}/{index}") for index in INDEXES)
        for file in files
    )


def may_have_module(name: str) -> bool:
    """Tell whether a kernel module is there, or may be: the sandbox of the daemon hides modules."""
    if has_module(name):
        return True
    try:
        os.listdir("/lib/modules")
    except PermissionError:
        return True
    except OSError:  # a kernel without modules
        return False
    return False


def _text(path: str) -> str:
    try:
        return read_text(path, errors="replace")
    except OSError:
        return ""

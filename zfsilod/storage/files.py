"""Files that survive a power cut: fsync(2) of file and folder before a function returns."""

from __future__ import annotations

import os

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath


def make_folder(path: AnyPath) -> None:
    """Make a folder of this user alone, and its parents, unless it is there."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def sync_folder(folder: AnyPath) -> None:
    """Write the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: AnyPath, content: bytes) -> None:
    """Write a file with mode 0600, atomically and durably: rename(2) after fsync(2)."""
    folder, name = os.path.split(path)
    draft = f"{folder or '.'}/.{name}.{os.urandom(4).hex()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.replace(draft, path)
    sync_folder(folder or ".")

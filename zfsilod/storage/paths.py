"""Looks at files and folders whose paths are texts: importing pathlib takes 8 ms of a worker."""

from __future__ import annotations

import errno
import os

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    AnyPath = str | os.PathLike[str]

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)


def exists(path: AnyPath) -> bool:
    """Tell whether a path leads to something. Raises OSError when that cannot be known."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    return True


def read_text(path: AnyPath, *, errors: str = "strict") -> str:
    """Return the content of a file.

    `errors`: of codecs.open(); "replace" for a file of the host, which may have any encoding.
    """
    with open(path, encoding="utf-8", errors=errors) as file:
        return file.read()


def remove_file(path: AnyPath) -> None:
    """Remove a file if it exists."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def names(folder: AnyPath) -> list[str]:
    """Return the names in a folder, sorted; none when it does not exist or may not be read."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []

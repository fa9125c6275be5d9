"""The portals that a subsystem gets back: a note for each removal of a host that has begun.

The end of one host's access unlinks the ports for a moment, for all hosts of the subsystem. A
worker that is killed within that moment leaves them closed, and nothing in configfs tells where
they were. So they are noted before, in a folder that is empty after a reboot, as configfs is.
"""

from __future__ import annotations

import os

from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.files import make_folder, write_private
from zfsilod.storage.paths import exists, read_text, remove_file

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath

NOTES = "/run/zfsilo/nvmet-closed"  # only root may create files there
TLS, PLAIN = "tls", "plain"  # the first line; then the portals


class ClosedPorts:
    """The notes of subsystems whose ports may be closed."""

    def __init__(self, folder: AnyPath = NOTES) -> None:
        self._folder = os.fspath(folder)

    def has(self, target: str) -> bool:
        """Tell whether a removal has begun and not ended."""
        return exists(self._path(target))

    def find(self, target: str) -> tuple[tuple[str, ...], bool] | None:
        """Return the noted portals, and whether they require TLS; None: there is no note."""
        if not self.has(target):
            return None
        kind, *portals = read_text(self._path(target)).split()
        return tuple(portals), kind == TLS

    def note(self, target: str, portals: tuple[str, ...], *, tls: bool) -> None:
        """Note the portals of a subsystem, before the first one is closed."""
        make_folder(self._folder)
        lines = "".join(f"{line}\n" for line in (TLS if tls else PLAIN, *portals))
        write_private(self._path(target), lines.encode())

    def forget(self, target: str) -> None:
        """Remove the note of a subsystem: its ports are as they should be."""
        remove_file(self._path(target))

    def _path(self, target: str) -> str:
        return f"{self._folder}/{target}"

"""Persistent reservations of SCSI that outlive a power loss of the server (APTPL: SPC-4, 5.12.4).

drivers/target/target_core_pr.c of the kernel: at a PERSISTENT RESERVE OUT with APTPL=1 it writes
all registrations of a LUN to <dbroot>/pr/aptpl_<serial>, and it refuses the command where that
folder is missing. It never reads the file. Each registration is given back to it by a write of its
lines to pr/res_aptpl_metadata of the backstore, which is not the LUN of a target yet; it is in
force as soon as the LUN is mapped for its initiator. The kernel does not tell what it was given,
and would keep a registration twice. tests/lab checks this with Linux 6.12.

A registration ends with the ACL of its initiator, without a write of the file: it is removed from
the file by the step that follows. The kernel may write at any moment, so the file is changed under
a lease: an open(2) of the kernel waits for its end (fcntl(2), F_SETLEASE).
"""

from __future__ import annotations

import errno
import os

from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.storage.paths import exists, remove_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.configfs import Configfs

PREFERRED, DBROOT = "/etc/target", "/var/target"  # as the kernel chooses when it loads the module
START, END = "PR_REG_START:", "PR_REG_END:"
NONE = "No Registrations or Reservations"
KEYS = ("initiator_node", "target_node", "sa_res_key", "mapped_lun", "target_lun")  # needed
MAX_BYTES = 1 << 20  # a registration has about 400
MODE = 0o700
LEASE_S = 10


class Reservations:
    """The files of this host, and the attribute of its backstores."""

    def __init__(self, fs: Configfs) -> None:
        self._fs = fs

    def make_save_folder(self) -> None:
        """Make the folder, without which the kernel refuses registrations, if that can be."""
        try:
            os.mkdir(os.path.dirname(self._path("")), MODE)
        except (FileExistsError, FileNotFoundError, PermissionError):
            return
        except OSError as error:
            if error.errno != errno.EROFS:  # the export does not depend on it
                raise

    def give_saved(self, backstore: str, serial: str) -> None:
        """Give the registrations of a serial to its new backstore.

        Raises FailedPrecondition (RESERVATIONS_DAMAGED) for a file that ends in the middle.
        """
        for registration in self._read(serial):
            lines = map(_as_read, registration)
            self._fs.write(f"{backstore}/pr/res_aptpl_metadata", ",".join(lines))

    def is_saved(self, serial: str, initiator: str = "") -> bool:
        """Tell whether registrations of an initiator are saved; "": whether there is a file."""
        if not initiator or not exists(self._path(serial)):
            return exists(self._path(serial))
        try:
            return any(_is_of(one, initiator) for one in self._read(serial))
        except FailedPrecondition:
            return False  # of a damaged file nothing comes back: give_saved

    def remove_saved(self, serial: str, initiator: str = "") -> None:
        """Remove the saved registrations of an initiator; "": all, with their file."""
        if not initiator:
            remove_file(self._path(serial))
        elif self.is_saved(serial, initiator):
            with self._leased(serial) as descriptor:
                content = os.pread(descriptor, MAX_BYTES, 0)
                kept = [one for one in self._parse(serial, content) if not _is_of(one, initiator)]
                text = _text(kept).encode()
                # One write, and no shorter file: what a power cut leaves is the one or the other.
                os.pwrite(descriptor, text.ljust(len(content), b"\0"), 0)
                os.fsync(descriptor)

    def _path(self, serial: str) -> str:
        dbroot = self._fs.read("dbroot") or (PREFERRED if exists(PREFERRED) else DBROOT)
        return f"{dbroot}/pr/aptpl_{serial}"

    def _read(self, serial: str) -> list[list[str]]:
        try:
            with open(self._path(serial), "rb") as file:
                return self._parse(serial, file.read(MAX_BYTES))
        except FileNotFoundError:
            return []

    def _parse(self, serial: str, content: bytes) -> list[list[str]]:
        """Return the lines of each registration."""
        text = content.decode("ascii", "replace").replace("\0", "").strip()
        if text == NONE:
            return []
        registrations = []
        for part in text.split(START)[1:]:
            _number, *lines = part.split("\n")
            end = next((index for index, line in enumerate(lines) if line.startswith(END)), None)
            fields = dict(line.split("=", 1) for line in lines[:end] if "=" in line)
            if end is None or not set(KEYS) <= set(fields) or not all(map(_is_plain, lines[:end])):
                raise self._damaged(serial)
            registrations.append(lines[:end])
        if not registrations:
            raise self._damaged(serial)
        return registrations

    def _damaged(self, serial: str) -> FailedPrecondition:
        path = self._path(serial)
        return FailedPrecondition(
            f"the saved persistent reservations in {path} are incomplete, and an export without "
            "them would admit what they refuse: remove the file to export the volume without them",
            reason="RESERVATIONS_DAMAGED",
            path=path,
        )

    @contextmanager
    def _leased(self, serial: str) -> Iterator[int]:
        """Yield the descriptor of the file; the kernel cannot open it meanwhile."""
        import fcntl
        import signal

        from zfsilod.host.events import wait_for

        def lease() -> bool:
            try:
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                return False
            return True

        descriptor = os.open(self._path(serial), os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # SIGIO would end the process
            if not wait_for(lease, LEASE_S):
                raise Unavailable(
                    f"{self._path(serial)} is open in another process",
                    reason="RESERVATIONS_BUSY",
                    path=self._path(serial),
                )
            yield descriptor
        finally:
            os.close(descriptor)  # and the lease


def _is_plain(line: str) -> bool:
    """Tell whether a line is a field that the kernel reads as one: it splits at commas."""
    name, _equals, value = line.partition("=")
    return name.replace("_", "a").isalpha() and value.isprintable() and not {",", " "} & set(value)


def _as_read(line: str) -> str:
    """Return a line as the kernel reads it: it writes the type as "08", which is not octal."""
    name, _equals, value = line.partition("=")
    return f"{name}={int(value, 16)}" if name == "res_type" else line


def _is_of(registration: list[str], initiator: str) -> bool:
    return f"initiator_node={initiator}" in registration


def _text(registrations: list[list[str]]) -> str:
    """Return registrations as the kernel writes them."""
    if not registrations:
        return f"{NONE}\n"
    return "".join(
        f"{START} {number}\n" + "".join(f"{line}\n" for line in lines) + f"{END} {number}\n"
        for number, lines in enumerate(registrations)
    )

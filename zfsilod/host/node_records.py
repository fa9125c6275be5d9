"""The node records of open-iscsi: the files in which iscsiadm keeps a target, one for each portal.

    ROOT/nodes/TARGET/ADDRESS,PORT,TPGT/INTERFACE     the record
    ROOT/nodes/TARGET/ADDRESS,PORT                    the record, in older versions
    ROOT/static/TARGET,ADDRESS,PORT,TPGT,INTERFACE    a link to the directory of the record

iscsiadm makes a record with the defaults of iscsid.conf. The settings of zfsilo are then written to
the file, since the option --value of iscsiadm(8) would show secrets in the process list. ROOT is
/var/lib/iscsi, on Debian 12 and older /etc/iscsi. usr/idbm.c of open-iscsi 2.1.11.

    ROOT/zfsilo/TARGET                                the mark of zfsilo: the name of the server

The mark is written before the first record and removed after the last one, so that records and
sessions of zfsilo are known from those of an administrator, even when the store was lost.
"""

from __future__ import annotations

import os
import sys

from zfsilod.host.events import wait_for
from zfsilod.host.locks import own_folder
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import iscsi_name, join_portal
from zfsilod.storage.files import make_folder, sync_folder, write_private
from zfsilod.storage.paths import exists, names, read_text, remove_file

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath

DATABASE_LOCK = "/run/lock/iscsi/lock.write"
STALE_S = 10.0  # iscsiadm holds its lock for milliseconds, and waits 30 s for it
ROOTS = ("/var/lib/iscsi", "/etc/iscsi")
FIRST_LINE, LAST_LINE = "# BEGIN RECORD", "# END RECORD"
MARKS = "zfsilo"
TEMPORARY = ".zfsilo-record"  # where iscsiadm does not look; protected by the host's lock


class Nodes:
    """The node records on this host."""

    def __init__(
        self, roots: tuple[AnyPath, ...] = ROOTS, database_lock: AnyPath = DATABASE_LOCK
    ) -> None:
        self.roots = tuple(os.fspath(root) for root in roots)
        self._lock = os.fspath(database_lock)

    def remove_stale_lock(self) -> None:
        """Wait for the lock file of iscsiadm, and remove it when it stays for STALE_S.

        The wait begins at the first look: the clock may have leapt since the lock was made. Its
        folder lies where any user may make it first, and could then hold the lock for ever.

        The lock is a link that its holder makes and removes (idbm_lock() of open-iscsi), so it
        survives a killed iscsiadm, and then every iscsiadm fails. Its ctime is the time of linking.
        """
        own_folder(os.path.dirname(self._lock))
        lock = self._lock_now()
        if lock is None:
            return
        wait_for(lambda: self._lock_now() != lock, STALE_S)
        if self._lock_now() == lock:
            sys.stderr.write(f"removed {self._lock}, which a killed iscsiadm had left\n")
            remove_file(self._lock)

    def _lock_now(self) -> tuple[int, int] | None:
        """Return what tells this lock from the next one; None without a lock."""
        try:
            status = os.stat(self._lock)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_ctime_ns

    def targets(self, prefix: str) -> list[str]:
        """Return the targets with a node record whose names start with a prefix."""
        present = {name for root in self.roots for name in names(f"{root}/nodes")}
        return sorted(name for name in present if name.startswith(prefix))

    def files(self, target: str) -> dict[str, str]:
        """Return the record files of a target with their portals, the oldest first."""
        portals: dict[str, str] = {}
        for root in self.roots:
            folder = f"{root}/nodes/{iscsi_name(target)}"
            for name in names(folder):
                address, _, rest = name.partition(",")  # "10.0.0.1,3260,1"
                port = rest.partition(",")[0]
                entry = f"{folder}/{name}"
                below = [f"{entry}/{one}" for one in os.listdir(entry)] if _is_folder(entry) else []
                files = below if _is_folder(entry) else [entry]
                portals |= dict.fromkeys(files, join_portal(address, port))
        return dict(sorted(portals.items(), key=lambda item: (os.stat(item[0]).st_mtime_ns, item)))

    def traces(self, target: str) -> list[str]:
        """Return every file, directory and link of a target, in the order of their removal."""
        paths: list[str] = []
        for root in self.roots:
            folder = f"{root}/nodes/{iscsi_name(target)}"
            for name in reversed(names(folder)):
                entry = f"{folder}/{name}"
                below = reversed(names(entry)) if _is_folder(entry) else ()
                paths += [*(f"{entry}/{file}" for file in below), entry]
            paths += [folder] if exists(folder) else []
            links = names(f"{root}/static")
            paths += [f"{root}/static/{name}" for name in links if name.startswith(f"{target},")]
        return paths

    def mark(self, target: str) -> str | None:
        """Return the server that is marked for a target; None without a mark."""
        for root in self.roots:
            try:
                return read_text(f"{root}/{MARKS}/{iscsi_name(target)}").strip()
            except FileNotFoundError:
                continue
        return None

    def set_mark(self, target: str, server: str) -> None:
        """Mark a target as one of a server, durably, before its first record is made."""
        if self.mark(target) == server:
            return
        folder = f"{next(filter(_is_folder, self.roots), self.roots[0])}/{MARKS}"
        make_folder(folder)
        write_private(f"{folder}/{iscsi_name(target)}", f"{server}\n".encode())

    def remove_mark(self, target: str) -> None:
        """Remove the mark of a target."""
        for root in self.roots:
            remove_file(f"{root}/{MARKS}/{iscsi_name(target)}")

    def remove(self, target: str) -> None:
        """Remove every trace of a target, first the files that hold secrets."""
        for path in self.traces(target):
            if _is_folder(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                remove_file(path)

    def read(self, path: AnyPath) -> dict[str, str]:
        """Return the settings of a record; none when the file is torn, as by a killed iscsiadm."""
        *lines, rest = _text(path).split("\n")
        if not lines or not lines[0].startswith(FIRST_LINE) or lines[-1] != LAST_LINE or rest:
            return {}
        pairs = (line.partition(" = ") for line in lines[1:-1])
        return {name: value for name, _, value in pairs}

    def update(self, path: AnyPath, settings: dict[str, str]) -> None:
        """Set values in a record, all or none of them, and sync the file and its directory."""
        values = self.read(path) | settings
        first = _text(path).partition("\n")[0]
        body = [f"{name} = {value}" for name, value in values.items()]
        root = next(root for root in self.roots if os.fspath(path).startswith(f"{root}/"))
        temporary = f"{root}/{TEMPORARY}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            text = "\n".join([first, *body, LAST_LINE, ""])
            file.write(text.encode(errors="surrogateescape"))
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        sync_folder(os.path.dirname(path))


def _text(path: AnyPath) -> str:
    """Return the content of a record; values that zfsilo did not set may be of any bytes."""
    with open(path, "rb") as file:
        return file.read().decode(errors="surrogateescape")


def _is_folder(path: str) -> bool:
    """Tell whether a path leads to a directory. Raises OSError when that cannot be known."""
    return exists(path) and os.path.isdir(path)

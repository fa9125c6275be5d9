"""Node records of open-iscsi: what iscsiadm keeps of a target, one file a portal.

    ROOT/nodes/TARGET/ADDRESS,PORT,TPGT/INTERFACE        and a link to the folder
    ROOT/static/TARGET,ADDRESS,PORT,TPGT,INTERFACE       (older: nodes/TARGET/ADDRESS,PORT, a file)

iscsiadm makes a record with the administrator's defaults from iscsid.conf; ours are then set in the
file, since its option --value would show the secrets in the process list. ROOT is /var/lib/iscsi,
on Debian 12 and older /etc/iscsi. Source: usr/idbm.c of open-iscsi 2.1.11, and the lab.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from zfsilod.host.events import wait_for
from zfsilod.model.names import iscsi_name
from zfsilod.storage.files import sync_folder

DATABASE_LOCK = Path("/run/lock/iscsi/lock.write")
STALE_S = 10.0  # iscsiadm holds its lock for milliseconds, and asks for it for 30 s
ROOTS = (Path("/var/lib/iscsi"), Path("/etc/iscsi"))
FIRST_LINE, LAST_LINE = "# BEGIN RECORD", "# END RECORD"
TEMPORARY = ".zfsilo-record"  # beside the folders that iscsiadm reads; under the host's lock


class Nodes:
    """The records on this host."""

    def __init__(
        self, roots: tuple[Path, ...] = ROOTS, database_lock: Path = DATABASE_LOCK
    ) -> None:
        self.roots = roots
        self._lock = database_lock

    def free(self) -> None:
        """Take iscsiadm's own lock away from one that was killed: it would be held for ever.

        The lock is a name for a file that the holder makes and removes, so its death frees nothing,
        and from then on every iscsiadm of the host fails. Making the name sets the file's ctime.
        """
        since = self._held_since()
        if since is None:
            return
        wait_for(lambda: self._held_since() != since, since + STALE_S - time.time())
        if self._held_since() == since:
            sys.stderr.write(f"{self._lock}: removed, an iscsiadm that was killed had left it\n")
            self._lock.unlink(missing_ok=True)

    def _held_since(self) -> float | None:
        try:
            return self._lock.stat().st_ctime
        except FileNotFoundError:
            return None

    def targets(self, prefix: str) -> list[str]:
        """Return the targets whose names begin so."""
        found = {each.name for root in self.roots for each in (root / "nodes").glob("*")}
        return sorted(name for name in found if name.startswith(prefix))

    def files(self, target: str) -> dict[Path, str]:
        """Return a target's record files, each with its portal, the first written first."""
        found: dict[Path, str] = {}
        for root in self.roots:
            for portal in (root / "nodes" / iscsi_name(target)).glob("*"):
                files = list(portal.iterdir()) if portal.is_dir() else [portal]
                found |= dict.fromkeys(files, _portal(portal.name))
        return dict(sorted(found.items(), key=lambda item: (item[0].stat().st_mtime_ns, item)))

    def traces(self, target: str) -> list[Path]:
        """Return everything that is there of a target, in an order in which it can be removed."""
        found: list[Path] = []
        for root in self.roots:
            folder = root / "nodes" / iscsi_name(target)
            found += sorted(folder.rglob("*"), reverse=True)  # what is in a folder before it
            found += [folder] if folder.exists() else []
            found += (root / "static").glob(f"{target},*")
        return found

    def remove(self, target: str) -> None:
        """Remove everything that is there of a target: the secrets first."""
        for path in self.traces(target):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)

    def read(self, path: Path) -> dict[str, str]:
        """Return a record; nothing for one that iscsiadm was stopped in the midst of writing."""
        lines = path.read_text().splitlines()
        if not lines or not lines[0].startswith(FIRST_LINE) or lines[-1] != LAST_LINE:
            return {}
        pairs = (line.partition(" = ") for line in lines[1:-1])
        return {name: value for name, _, value in pairs}

    def update(self, path: Path, settings: dict[str, str]) -> None:
        """Set values in a record: all or none of them, on disk when this returns."""
        values = self.read(path) | settings
        first = path.read_text().partition("\n")[0]
        body = [f"{name} = {value}" for name, value in values.items()]
        root = next(root for root in self.roots if path.is_relative_to(root))
        temporary = root / TEMPORARY
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w") as file:  # noqa: PTH123 - a descriptor, made for its mode
            file.write("\n".join([first, *body, LAST_LINE, ""]))
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        sync_folder(path.parent)


def _portal(name: str) -> str:
    """Return "10.0.0.1:3260" for a folder called "10.0.0.1,3260,1"."""
    address, _, rest = name.partition(",")
    port = rest.partition(",")[0]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

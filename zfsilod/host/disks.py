"""The disks of iSCSI sessions as sysfs shows them, and whether somebody uses a block device.

Source: drivers/scsi/scsi_transport_iscsi.c for /sys/class/iscsi_session, and
Documentation/ABI/*/sysfs-block of the kernel. A disk is told by the target's name, never by its
own: sdX is whatever was free when it appeared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host import mountinfo
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk

SYS = Path("/sys")
DEV = Path("/dev")
RUN = Path("/run")
SECTOR_BYTES = 512  # the unit of /sys/block/*/size, whatever the disk's own sectors are
LOGGED_IN = "LOGGED_IN"
FAILED = "FAILED"  # the connection was lost, and iscsid tries to get it back
VPD_HEADER_BYTES = 4
PAGE_BYTES = 4096  # which O_DIRECT can read at once of any disk


class Session:
    """An iSCSI session of this host."""

    def __init__(self, target: str, folder: Path) -> None:
        self.target = target
        self.folder = folder

    @property
    def sid(self) -> str:
        """The number by which iscsiadm knows it."""
        return self.folder.name.removeprefix("session")

    @property
    def state(self) -> str:
        """LOGGED_IN, FAILED or FREE; "" when it is gone."""
        return read(self.folder / "state")


class Device:
    """A whole disk in /sys/block."""

    def __init__(self, folder: Path, dev: Path = DEV) -> None:
        self.folder = folder
        self.name = folder.name
        self.path = dev / folder.name

    @property
    def number(self) -> str:
        """Major and minor number, as mountinfo has it: 8:0."""
        return read(self.folder / "dev")

    @property
    def size_bytes(self) -> int:
        """The size that the kernel believes it has."""
        return int(read(self.folder / "size") or 0) * SECTOR_BYTES

    @property
    def readonly(self) -> bool:
        """Whether it is write-protected, by the target or here."""
        return read(self.folder / "ro") == "1"

    @property
    def serial(self) -> str:
        """The unit serial that the target gave it: page 0x80 of its vital product data."""
        try:
            page = (self.folder / "device/vpd_pg80").read_bytes()
        except OSError:
            return ""
        return page[VPD_HEADER_BYTES:].decode("ascii", "replace").strip(" \0")


class Disks:
    """Finds sessions and their disks."""

    def __init__(self, sys: Path = SYS, dev: Path = DEV, run: Path = RUN) -> None:
        self.sys = sys
        self.dev = dev
        self.run = run

    def sessions(self, prefix: str = "") -> list[Session]:
        """Return the sessions with targets whose names begin so."""
        folder = self.sys / "class/iscsi_session"
        names = sorted(each.name for each in folder.iterdir()) if folder.exists() else []
        found = [Session(read(folder / name / "targetname"), folder / name) for name in names]
        return [each for each in found if each.target and each.target.startswith(prefix)]

    def session(self, target: str) -> Session | None:
        """Return the session with a target; of several the one that works."""
        found = [each for each in self.sessions(target) if each.target == target]
        works = [each for each in found if each.state == LOGGED_IN]
        return next(iter(works + found), None)

    def device(self, session: Session) -> Device | None:
        """Return LUN 0 of a session, if the kernel has found it already."""
        found = sorted(session.folder.glob("device/target*/*:*:*:0/block/*"))
        return Device(found[0], self.dev) if found else None

    def scan(self, session: Session) -> None:
        """Have the kernel look for the disk of a session that had none when it was made."""
        host = (session.folder / "device").resolve().parent
        (host / "scsi_host" / host.name / "scan").write_text("- - -")

    def udev_knows(self, device: Device) -> bool:
        """Tell whether udev has run its rules for a device, or there is no udev to wait for.

        Its word is taken: the daemon's sandbox hides the device itself.
        """
        if (self.run / "udev/control").exists():
            return (self.run / "udev/data" / f"b{device.number}").exists()
        return device.path.exists()

    def find(self, target: str) -> Device | None:
        """Return the disk of a target, or None."""
        session = self.session(target)
        return self.device(session) if session else None

    def need(self, disk: Disk) -> Device:
        """Return a disk that can be worked with, and is the one that was meant."""
        session = self.session(disk.target)
        if session is None:
            raise FailedPrecondition(
                f"there is no session with {disk.target}: connect the volume",
                reason="NOT_CONNECTED", target=disk.target,
            )  # fmt: skip
        if session.state != LOGGED_IN:
            raise Unavailable(
                f"the session with {disk.target} is being recovered (state {session.state})",
                reason="SESSION_RECOVERY", target=disk.target,
            )  # fmt: skip
        device = self.device(session)
        if device is None:
            raise Unavailable(f"the disk of {disk.target} has not appeared", target=disk.target)
        check_serial(device, disk)
        return device


def auth_parameters(chap: Chap) -> dict[str, str]:
    """Return secrets by their names in iscsid.conf(5) and in /sys/class/iscsi_session.

    "in" is what the target has to answer with.
    """
    return {
        "username": chap.username, "password": chap.password.reveal(),
        "username_in": chap.mutual_username, "password_in": chap.mutual_password.reveal(),
    }  # fmt: skip


def check_serial(device: Device, disk: Disk) -> None:
    """Raise Conflict for a disk that is not the volume's: nothing may touch it."""
    if not device.serial:
        raise Unavailable(f"{device.path} does not tell its serial", device=str(device.path))
    if device.serial != disk.serial:
        raise Conflict(
            f"the disk {device.path} of {disk.target} has the serial {device.serial}, "
            f"not {disk.serial}",
            device=str(device.path), found=device.serial, expected=disk.serial,
        )  # fmt: skip


def claim(path: Path, what: str) -> None:
    """Prove that nobody uses a block device: open it exclusively, as mount and LVM do: open(2).

    Opened for reading only, since udev probes a device anew when a writer closes it.
    """
    os.close(open_exclusively(path, what, os.O_RDONLY))


def answers(path: Path, within_s: float) -> bool:
    """Tell whether a read past all caches ends in time, well or with an error.

    Nothing ends a read that hangs but its session's end, so it is left alone in its thread.
    """
    ended = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError), mmap(-1, PAGE_BYTES) as page:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                os.preadv(descriptor, [page], 0)
            finally:
                os.close(descriptor)
        ended.set()

    threading.Thread(target=ask, daemon=True).start()
    return ended.wait(within_s)


def open_exclusively(path: Path, what: str, flags: int) -> int:
    """Return a descriptor that keeps other exclusive users away. Raises Busy that names them."""
    try:
        return os.open(path, flags | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise in_use(path, what) from error
        raise Unavailable(
            f"{what} cannot be opened: {error.strerror}",
            device=str(path), errno=errno.errorcode.get(error.errno or 0, ""),
        ) from error  # fmt: skip


def in_use(path: Path, what: str) -> Busy:
    """Return the error for a block device in use, which names who uses it."""
    names = users(path)
    by = f" by {', '.join(names)}" if names else ""
    return Busy(
        f"{what} ({path}) is in use{by}", reason="IN_USE", device=str(path), users=" ".join(names)
    )


def users(path: Path, sys: Path = SYS) -> list[str]:
    """Return what holds a block device: devices made of it, and mount points here."""
    folder = sys / "class/block" / path.resolve().name
    holders = folder / "holders"
    above = sorted(each.name for each in holders.iterdir()) if holders.exists() else []
    number = read(folder / "dev")
    return above + [each.path for each in mountinfo.read() if each.number == number]


def read(path: Path) -> str:
    """Return a sysfs attribute without its newline; "" when it, or its device, is gone."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""

"""iSCSI sessions and their disks in sysfs, and the users of a block device.

drivers/scsi/scsi_transport_iscsi.c of the kernel has the attributes of /sys/class/iscsi_session;
Documentation/ABI/stable/sysfs-block those of /sys/block. A disk is looked up by the name of its
target and checked by its serial, never by a name such as sda, which may change at each login.
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock, start_new_thread
from mmap import mmap

from zfsilod.host.attributes import read, write
from zfsilod.host.device import DEV, Device
from zfsilod.host.device_users import open_descriptors, static_users
from zfsilod.host.events import wait_for
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, Unavailable, show
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.model.names import seen_portal
from zfsilod.storage.paths import exists, names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.maps import MapDevice
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk
    from zfsilod.storage.paths import AnyPath

SYS, RUN = "/sys", "/run"
NO_LIMIT = "off"  # of recovery_tmo: show_priv_session_recovery_tmo()
LOGGED_IN = "LOGGED_IN"
FAILED = "FAILED"  # the connection was lost, and iscsid tries to restore it
FAILOVER_S = 5
"""How long I/O waits for a lost session before it takes another path: `fast_io_fail_tmo` of
units/host/multipath.conf, which multipathd sets too. How long it waits for any path says
`no_path_retry` there."""
MULTIPATHD = "multipathd.pid"  # of root, while it runs; any user could listen at its socket
MAPS = "zfsilo/maps"  # in /run: the marks of disks with a map
DETACH_WAIT_S = 30  # I/O of an unmount waits this long for a session that is lost meanwhile
SETTLE_S = 5.0  # for udev, which opens a disk for a moment
UNIT_COLONS = 3  # in the name of a logical unit, such as 2:0:0:0
PAGE_BYTES = 4096  # a size that O_DIRECT accepts on any disk


class IscsiSession:
    """An iSCSI session of this host: a directory in /sys/class/iscsi_session."""

    def __init__(self, target: str, folder: str) -> None:
        self.target = target
        self.folder = folder

    @property
    def sid(self) -> str:
        """The number of the session, as `iscsiadm -m session -r` takes it."""
        return self.folder.rpartition("/")[2].removeprefix("session")

    @property
    def state(self) -> str:
        """LOGGED_IN, FAILED or FREE; "" when the session has ended."""
        return read(f"{self.folder}/state")

    def waits(self, seconds: int) -> bool:
        """Tell whether I/O waits this long for the session when it is lost; 0: without limit."""
        return read(f"{self.folder}/recovery_tmo") == (str(seconds) if seconds else NO_LIMIT)

    def set_wait(self, seconds: int) -> None:
        """Change how long I/O waits for the session when it is lost.

        The kernel refuses it for a session that is lost already: store_priv_session_recovery_tmo().
        Such I/O ends by a logout, and a later reconcile sets the value.
        """
        if self.waits(seconds) or self.state != LOGGED_IN:
            return
        try:
            write(f"{self.folder}/recovery_tmo", str(seconds) if seconds else NO_LIMIT)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT, errno.ENODEV):
                raise Unavailable(
                    f"the time-out of the session with {self.target} cannot be set: "
                    f"{error.strerror}",
                    target=self.target,
                ) from error

    def remove_disks(self) -> None:
        """Make the kernel remove the disks of the session; pending I/O of a lost one fails.

        A disk whose I/O is held back goes without a flush: __scsi_remove_device() of the kernel.
        """
        device = f"{self.folder}/device"
        groups = [f"{device}/{name}" for name in names(device) if name.startswith("target")]
        units = [f"{group}/{name}" for group in groups for name in names(group)]
        for unit in (unit for unit in units if exists(f"{unit}/delete")):
            try:
                write(f"{unit}/delete", "1")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise Unavailable(
                        f"the disk of {self.target} cannot be removed: {error.strerror}",
                        target=self.target,
                    ) from error


class Disks:
    """The iSCSI sessions of this host and their disks."""

    def __init__(self, sys: AnyPath = SYS, dev: AnyPath = DEV, run: AnyPath = RUN) -> None:
        self.sys, self.dev, self.run = os.fspath(sys), os.fspath(dev), os.fspath(run)

    @property
    def has_multipathd(self) -> bool:
        """Whether multipathd runs on this host."""
        return exists(f"{self.run}/{MULTIPATHD}")

    def sessions(self, prefix: str = "") -> list[IscsiSession]:
        """Return the sessions with targets whose names start with a prefix."""
        root = f"{self.sys}/class/iscsi_session"
        folders = [f"{root}/{name}" for name in sorted(os.listdir(root))] if exists(root) else []
        sessions = [IscsiSession(read(f"{folder}/targetname"), folder) for folder in folders]
        return [s for s in sessions if s.target and s.target.startswith(prefix)]

    def sessions_with(self, target: str) -> list[IscsiSession]:
        """Return the sessions with a target, of which each leads to its disk; live ones first."""
        sessions = [session for session in self.sessions(target) if session.target == target]
        return sorted(sessions, key=lambda session: session.state != LOGGED_IN)

    def session(self, target: str) -> IscsiSession | None:
        """Return the session with a target; if there are several, one that is logged in."""
        return next(iter(self.sessions_with(target)), None)

    @contextmanager
    def hurried(self, target: str) -> Iterator[None]:
        """Let I/O fail soon when the session is lost meanwhile, so that no unmount hangs in it.

        What a killed worker leaves is a difference that the next reconcile repairs.
        """
        sessions = self.sessions_with(target)
        before = {session.folder: read(f"{session.folder}/recovery_tmo") for session in sessions}
        for session in sessions:
            if session.waits(0) or _seconds(before[session.folder]) > DETACH_WAIT_S:
                session.set_wait(DETACH_WAIT_S)
        try:
            yield
        finally:
            for session in sessions:
                session.set_wait(_seconds(before[session.folder]))

    def portal(self, session: IscsiSession) -> str:
        """Return the portal that iscsid logged in to, as ADDRESS:PORT; "" when it is not known."""
        folder = f"{self.sys}/class/iscsi_connection/connection{session.sid}:0"
        address, port = read(f"{folder}/persistent_address"), read(f"{folder}/persistent_port")
        return seen_portal(address, port) if address and port else ""

    def device(self, session: IscsiSession) -> Device | None:
        """Return the disk of LUN 0 of a session; None when the kernel has not found it yet."""
        device = f"{session.folder}/device"
        for target in names(device):
            for unit in names(f"{device}/{target}") if target.startswith("target") else ():
                if unit.endswith(":0") and unit.count(":") == UNIT_COLONS:
                    for name in names(f"{device}/{target}/{unit}/block"):
                        return Device(f"{device}/{target}/{unit}/block/{name}", self.dev)
        return None

    def scan(self, session: IscsiSession) -> None:
        """Make the kernel look again for the disk of a session that was logged in without one."""
        host = os.path.dirname(os.path.realpath(f"{session.folder}/device"))
        write(f"{host}/scsi_host/{os.path.basename(host)}/scan", "- - -")

    def udev_knows(self, device: Device) -> bool:
        """Tell whether udev has run its rules for a device, or is not running.

        The udev database is read and not the device node, which the daemon's sandbox hides.
        """
        if exists(f"{self.run}/udev/control"):
            return exists(f"{self.run}/udev/data/b{device.number}")
        return exists(device.path)

    def map_mark(self, target: str) -> str:
        """Return the file that says that the disk of a target is a map, or is to become one.

        Without it a disk stays as it is: a map that multipathd makes later is not used. It is made
        before the session, and removed after it; /run is empty after a boot.
        """
        return f"{self.run}/{MAPS}/{target.replace('/', '-')}"

    def failing_mark(self, joined: MapDevice) -> str:
        """Return the file that exists while I/O of a map fails that has no path, and does not wait.

        Neither the kernel nor multipathd shows this in a file.
        """
        return f"{self.run}/{MAPS}/{joined.name}.failing"

    def joined(self, target: str) -> MapDevice | None:
        """Return the map that joins the sessions with a target; None where there is none."""
        return self._joined(target, self.sessions_with(target))

    def _joined(self, target: str, sessions: list[IscsiSession]) -> MapDevice | None:
        if not exists(self.map_mark(target)):
            return None
        from zfsilod.host.maps import find_map  # on few hosts

        paths = [path for path in map(self.device, sessions) if path]
        return find_map(paths, target.rpartition(":")[2], self.sys, self.dev)

    def find(self, target: str) -> Device | None:
        """Return the disk of a target, if possible the map; None without a session and a map."""
        sessions = self.sessions_with(target)
        joined = self._joined(target, sessions)
        return joined or (self.device(sessions[0]) if sessions else None)

    def need(self, disk: Disk) -> Device:
        """Return the device of a disk, logged in and with the serial of the volume.

        Raises FailedPrecondition (NOT_CONNECTED) without a session, Unavailable when the session
        is being recovered or its disk has not appeared, Conflict when the serial is another.
        """
        session = self.session(disk.target)
        if session is None:
            raise FailedPrecondition(
                f"there is no session with {disk.target}; connect the volume",
                reason="NOT_CONNECTED",
                target=disk.target,
            )
        if session.state != LOGGED_IN:
            raise Unavailable(
                f"the session with {disk.target} is being recovered (state {session.state})",
                reason="SESSION_RECOVERY",
                target=disk.target,
            )
        device = self.find(disk.target)
        if device is None:
            raise Unavailable(f"the disk of {disk.target} has not appeared", target=disk.target)
        check_serial(device, disk)
        return device


def _seconds(recovery_tmo: str) -> int:
    return int(recovery_tmo) if recovery_tmo.isdecimal() else 0


def auth_parameters(chap: Chap) -> dict[str, str]:
    """Return CHAP secrets by the names of iscsid.conf and of /sys/class/iscsi_session.

    The names that end in "_in" are for the answer of the target (mutual CHAP, RFC 7143).
    """
    return {
        "username": chap.username,
        "password": chap.password.reveal(),
        "username_in": chap.mutual_username,
        "password_in": chap.mutual_password.reveal(),
    }


def check_serial(device: Device, disk: Disk) -> None:
    """Raise Conflict unless a device has the serial of the volume, Unavailable if it shows none."""
    if not device.serial:
        raise Unavailable(f"the disk {device.path} has no serial in sysfs", device=device.path)
    if device.serial != disk.serial:
        raise Conflict(
            f"the disk {device.path} of {disk.target} has the serial {device.serial}, "
            f"not {disk.serial}",
            device=device.path,
            found=device.serial,
            expected=disk.serial,
        )


def check_unused(path: str, name: str) -> None:
    """Raise Busy when a block device is in use: mounted, held, or opened by a process.

    First tried with O_EXCL, which open(2) refuses with EBUSY for mounts and holders. The device is
    opened read-only, since udev runs its rules for a device whenever a writer closes it.
    """
    os.close(open_exclusively(path, name, os.O_RDONLY))
    if by := users_beside(path):
        raise in_use(path, name, by)


def users_beside(path: str, kept: tuple[str, ...] = (), *, settle_s: float = SETTLE_S) -> list[str]:
    """Return the users of a block device except mounts at `kept`: see host/device_users.py.

    Waits until short uses have ended, such as those of udev. Raises Unavailable (UNKNOWN) when
    there may be more that this process cannot see.
    """
    device = os.path.basename(os.path.realpath(path))
    by = [user for user in static_users(device) if user not in kept]
    seen = open_descriptors(device)
    if seen.names and not by and settle_s:

        def is_closed() -> bool:
            nonlocal seen
            seen = open_descriptors(device)
            return not seen.names

        wait_for(is_closed, settle_s)
    by += seen.names
    if seen.unseen and not by:
        raise Unavailable(
            f"it is not known whether {path} is in use: {seen.unseen}",
            reason="UNKNOWN",
            device=path,
        )
    return by


def in_use(path: str, name: str, by: list[str]) -> Busy:
    """Return the error for a device with these users; none: they are not known."""
    shown = [show(user) for user in by]
    by_these = f" by {', '.join(shown)}" if shown else ""
    return Busy(
        f"{name} ({path}) is in use{by_these}",
        reason="IN_USE",
        device=path,
        users=" ".join(shown),
    )


def is_responsive(path: str, timeout_s: float) -> bool:
    """Tell whether a direct read of the first page ends in time, with data or with an error.

    A read that hangs can be ended by its session only, so its thread is left alone.
    """
    reading = allocate_lock()
    reading.acquire()

    def read_page() -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                with mmap(-1, PAGE_BYTES) as page:
                    os.preadv(descriptor, [page], 0)
            finally:
                os.close(descriptor)
        except OSError:
            pass  # an answer too
        finally:
            reading.release()

    start_new_thread(read_page, ())
    return reading.acquire(timeout=timeout_s)


def open_exclusively(path: str, name: str, flags: int) -> int:
    """Open a block device with O_EXCL, which keeps other exclusive users away, and return it.

    Raises Busy (IN_USE) with the users of the device, Unavailable for any other error.
    """
    try:
        return os.open(path, flags | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise in_use(path, name, users(path)) from error
        raise Unavailable(
            f"{name} cannot be opened: {error.strerror}",
            device=path,
            errno=errno.errorcode.get(error.errno or 0, ""),
        ) from error


def users(path: str, sys: AnyPath = SYS) -> list[str]:
    """Return the users of a block device that are known: holders, mount points, swap, processes.

    For error messages, and for the daemon, which sees no process; nothing is raised.
    """
    device = os.path.basename(os.path.realpath(path))
    return [*static_users(device, sys), *open_descriptors(device, sys).names]

"""The limits of the I/O of volumes: io.max of a control group that has the sessions' threads.

Documentation/admin-guide/cgroup-v2.rst of the kernel. Each session of the kernel's iSCSI target has
two threads, iscsi_trx and iscsi_ttx, which submit its I/O. They may be moved out of the root group,
as most threads of the kernel may not; a new session has new threads in the root group. Nothing
tells the threads of one session from those of another, and nothing needs to: the group has the
threads of all sessions, and io.max has a line for each limited device, the zvol of one volume.

systemd owns the tree of groups, so the group is below that of a unit with Delegate=
(units/zfsilo-limits.service). The process of the unit only keeps it, in a group of its own beside
that of the threads, since a group with a controller for others has no process. All of this exists
while there is a line: the last line that goes takes it along, after the threads.
"""

from __future__ import annotations

import os

from zfsilod.host import zvol_device
from zfsilod.host.attributes import read
from zfsilod.host.events import wait_for
from zfsilod.host.export_paths import device_number
from zfsilod.host.lio import CORE
from zfsilod.host.locks import host_lock
from zfsilod.model.errors import CommandFailed, FailedPrecondition, Unavailable
from zfsilod.model.host_facts import NO_LIMITS, IoLimits
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.configfs import Configfs
    from zfsilod.host.run import Runner
    from zfsilod.storage.paths import AnyPath

GROUPS = "/sys/fs/cgroup"
UNIT = "zfsilo-limits.service"
UNIT_GROUP = f"zfsilo.slice/{UNIT}"
GROUP = f"{UNIT_GROUP}/volumes"
KEEPER = f"{UNIT_GROUP}/keeper"  # the group of the unit's process
CONTROL = "cgroup.subtree_control"
PROC = "/proc"
LOCK = "/run/zfsilo/limits.lock"  # only root may create files there
LOCK_TIMEOUT_S = 60
UNIT_TIMEOUT_S = 30
EMPTY_S = 10  # for a thread of a session that ends to leave its group
KEYS = {"rbps": "read_bytes", "wbps": "write_bytes", "riops": "read_iops", "wiops": "write_iops"}
NO_LIMIT = "max"
THREADS = ("iscsi_trx", "iscsi_ttx")
PF_KTHREAD = 0x00200000
FLAGS = 6  # of proc_pid_stat(5), counted from the field after the name


class RealIoLimits:
    """The limits on this host; see LimitAdapter."""

    def __init__(
        self,
        run: Runner,
        groups: Configfs,
        target: Configfs,
        *,
        surveyed: bool = False,
        proc: AnyPath = PROC,
        lock: AnyPath = LOCK,
    ) -> None:
        """`target`: the backstores of LIO; `surveyed`: what is read once serves many probes."""
        self._run = run
        self._groups = groups
        self._target = target
        self._surveyed = surveyed
        self._proc = os.fspath(proc)
        self._lock = lock
        self._lines: dict[str, IoLimits] | None = None
        self._outside: list[str] | None = None

    def has_limits(self, backstore: str, limits: IoLimits, *, dataset: str) -> bool:
        lines = self._lines
        if lines is None or not self._surveyed:
            lines = self._lines = self._read_lines()
        if not limits and not lines and self._groups.has(UNIT_GROUP):
            return False  # half removed
        return lines.get(self._number(backstore, dataset), NO_LIMITS) == limits

    def set_limits(self, backstore: str, limits: IoLimits, *, dataset: str = "") -> None:
        self._forget()
        if not limits and not self._groups.has(UNIT_GROUP):
            return
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            number = self._number(backstore, dataset)
            if limits:
                self._make_group()
                self._groups.write(f"{GROUP}/io.max", line(number, limits))
                self._take(self._find_outside())
            else:
                self._lift(number)

    def has_all_sessions(self) -> bool:
        if not self._groups.has(GROUP):
            return True
        outside = self._outside
        if outside is None or not self._surveyed:
            outside = self._outside = self._find_outside()
        return not outside

    def take_sessions(self) -> None:
        self._forget()
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            if self._groups.has(GROUP):
                self._take(self._find_outside())

    def _forget(self) -> None:
        self._lines = self._outside = None

    def _number(self, backstore: str, dataset: str) -> str:
        """Return the number of the device of a backstore, as major:minor; "" without a device."""
        info = self._target.read(f"{CORE}/{backstore}/info") or ""
        return device_number(info) or (zvol_device.number(dataset) if dataset else "")

    def _read_lines(self) -> dict[str, IoLimits]:
        lines = (self._groups.read(f"{GROUP}/io.max") or "").splitlines()
        return dict(map(parse, lines))

    def _find_outside(self) -> list[str]:
        """Return the ids of the threads of sessions that are in the root group."""
        return [thread for thread in self._members(".") if is_of_session(f"{self._proc}/{thread}")]

    def _make_group(self) -> None:
        if self._groups.has(f"{GROUP}/io.max"):
            return
        if self._groups.has(f"{UNIT_GROUP}/{CONTROL}"):
            self._groups.write(f"{UNIT_GROUP}/{CONTROL}", "-io")  # or the unit would not start
        self._run(["systemctl", "start", UNIT], timeout_s=UNIT_TIMEOUT_S)
        if "io" not in (self._groups.read(f"{UNIT_GROUP}/cgroup.controllers") or "").split():
            self._run(["systemctl", "stop", UNIT], timeout_s=UNIT_TIMEOUT_S)
            raise FailedPrecondition(
                f"this host cannot limit I/O: {self._groups.root}/{UNIT_GROUP} has no controller "
                "io; it takes the unified hierarchy of cgroup v2 and a kernel with "
                "CONFIG_BLK_DEV_THROTTLING",
                reason="NO_IO_LIMITS",
            )
        self._groups.make(KEEPER)
        for process in self._members(UNIT_GROUP):
            self._move(process, KEEPER)
        self._groups.write(f"{UNIT_GROUP}/{CONTROL}", "+io")
        self._groups.make(GROUP)

    def _lift(self, number: str) -> None:
        """Remove the line of a device, and after the last line the group."""
        if number in self._read_lines():
            self._groups.write(f"{GROUP}/io.max", line(number, NO_LIMITS))
        if self._read_lines():
            return
        for thread in self._members(GROUP):
            self._move(thread, ".")
        if not wait_for(self._is_empty, EMPTY_S):
            raise Unavailable(f"the control group {GROUP} has threads that do not leave it")
        self._groups.remove(GROUP)
        self._run(["systemctl", "stop", UNIT], timeout_s=UNIT_TIMEOUT_S)
        for group in (KEEPER, UNIT_GROUP):
            if self._groups.has(group):  # systemd leaves those of a unit that ended before
                self._groups.remove(group)

    def _is_empty(self) -> bool:
        events = self._groups.read(f"{GROUP}/cgroup.events")
        return events is None or "populated 0" in events.splitlines()

    def _take(self, threads: list[str]) -> None:
        for thread in threads:
            self._move(thread, GROUP)

    def _members(self, group: str) -> list[str]:
        return (self._groups.read(f"{group}/cgroup.procs") or "").split()

    def _move(self, thread: str, group: str) -> None:
        """Move a thread to a group, "." is the root; one whose session has ended is gone."""
        try:
            self._groups.write(f"{group}/cgroup.procs", thread)
        except CommandFailed as error:
            if error.facts.get("errno") != "ESRCH":
                raise


def line(number: str, limits: IoLimits) -> str:
    """Return the line of io.max of a device."""
    values = {key: getattr(limits, name) or NO_LIMIT for key, name in KEYS.items()}
    return " ".join([number, *(f"{key}={value}" for key, value in values.items())])


def parse(text: str) -> tuple[str, IoLimits]:
    """Return the number of the device of a line of io.max, and its limits."""
    number, *pairs = text.split()
    values = dict(pair.split("=") for pair in pairs)
    known = {name: values.get(key, NO_LIMIT) for key, name in KEYS.items()}
    limits = {name: int(value) for name, value in known.items() if value != NO_LIMIT}
    return number, IoLimits(**limits)


def is_of_session(process: str) -> bool:
    """Tell whether a process is a kernel thread of a session: proc_pid_comm(5), proc_pid_stat(5).

    Any process can choose one of these names; only the kernel sets the flag.
    """
    if read(f"{process}/comm") not in THREADS:
        return False
    fields = read(f"{process}/stat").rpartition(")")[2].split()
    return len(fields) > FLAGS and bool(int(fields[FLAGS]) & PF_KTHREAD)

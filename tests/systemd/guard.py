"""The parent of the systemd under test: keeps its files between boots and cleans up behind it.

The test process sends `boot`, `off`, `reboot` or `cut` and receives `started`, `ready` and `ended`,
one JSON object a packet. When it closes the socket, or dies, nothing of the machine stays. All
mounts are in mount namespaces of this process and its children, so they need no unmounting.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import uuid
from pathlib import Path

from tests.systemd import linux, rootfs

NEW_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWNET
)
# systemd(1), "SIGNALS".
SIGNALS = {
    "off": signal.SIGRTMIN + 4,
    "reboot": signal.SIGRTMIN + 5,
    "cut": signal.SIGKILL,
}
CLEANUP_TIMEOUT_S = 10.0


class Guard:
    """One machine: a file system that lasts, and at most one running systemd."""

    def __init__(self, link: socket.socket, plan: rootfs.Plan) -> None:
        self.link = link
        self.plan = plan
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self.devices: set[int] = set()  # Of the file systems that only the machine has.
        self.pid = 0
        self.pidfd = -1
        self.ready = False
        linux.unshare(linux.CLONE_NEWNS)
        rootfs.prepare(plan)
        self.cgroup = _cgroup_root(plan) / plan.name
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(os.fspath(plan.host / "notify"))

    def serve(self) -> None:
        """Do what the test process asks until it closes the link."""
        while True:
            poller = select.poll()
            for fd in (self.link.fileno(), self.notify.fileno(), self.pidfd):
                if fd >= 0:
                    poller.register(fd, select.POLLIN)
            for fd, _ in poller.poll():
                if fd == self.pidfd:
                    self.ended()
                elif fd == self.notify.fileno():
                    self.notified()
                elif not self.command():
                    return

    def command(self) -> bool:
        """Read one command; False when there will be no more."""
        verb = self.link.recv(4096).decode()
        if verb == "boot":
            self.boot()
        elif verb:
            self.signal(SIGNALS[verb])
        return bool(verb)

    def boot(self) -> None:
        """Start systemd as PID 1 of new namespaces."""
        boot_id = Path(self.plan.state, "boot_id")
        boot_id.write_text(f"{uuid.uuid4()}\n")
        self.cgroup.mkdir()
        (self.cgroup / "harness").mkdir()
        linux.unshare(linux.CLONE_NEWPID)
        self.pid = os.fork()
        if self.pid == 0:
            self._become_init(boot_id)
        linux.setns(self.own_pids, linux.CLONE_NEWPID)  # Else the next fork would fail.
        self.pidfd = os.pidfd_open(self.pid)
        self.ready = False
        self.tell(event="started", pid=self.pid, cgroup=os.fspath(self.cgroup))

    def _become_init(self, boot_id: Path) -> None:
        try:
            linux.die_with_parent()
            (self.cgroup / "cgroup.procs").write_text("0")
            linux.unshare(NEW_NAMESPACES)
            rootfs.become_systemd(self.plan, boot_id, console=sys.stderr.fileno())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def notified(self) -> None:
        """Tell the test process when the last job of the boot has ended."""
        message = self.notify.recv(4096)
        if not self.ready and b"READY=1" in message.splitlines():
            self.ready = True
            self._note_devices()
            self.tell(event="ready")

    def signal(self, number: int) -> None:
        """Send a signal to PID 1, if there is one."""
        if self.pidfd >= 0:
            self._note_devices()
            signal.pidfd_send_signal(self.pidfd, number)

    def ended(self) -> None:
        """Clean up behind a systemd that is gone, and with it every process of its namespace."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1
        self._detach_loops()
        _remove_cgroup(self.cgroup)
        code = os.waitstatus_to_exitcode(status)
        self.tell(event="ended", code=code)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.pidfd >= 0:
            self.signal(signal.SIGKILL)
            self.ended()
        linux.unmount(self.plan.state)
        Path(self.plan.state).rmdir()

    def tell(self, **event: object) -> None:
        """Send an event, unless nobody listens any more."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.link.send(json.dumps(event).encode())

    def _note_devices(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            self.devices |= linux.machine_devices(self.pid)

    def _detach_loops(self) -> None:
        for name, device in linux.attached_loops().items():
            if device in self.devices:
                linux.detach_loop(name)


def _cgroup_root(plan: rootfs.Plan) -> Path:
    """Find the cgroup2 hierarchy; a host without one gets it mounted here, for us alone."""
    for mount in linux.mounts():
        if mount.fstype == "cgroup2":
            return Path(mount.point)
    root = Path(plan.state, "cgroup")
    root.mkdir()
    linux.mount("cgroup2", root, fstype="cgroup2")
    return root


def _remove_cgroup(top: Path) -> None:
    """Remove a cgroup and all below it as soon as the last dying process has left."""
    deadline = time.monotonic() + CLEANUP_TIMEOUT_S
    with (top / "cgroup.events").open() as events:
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while "populated 1" in events.read() and time.monotonic() < deadline:
            poller.poll(100)
            events.seek(0)
    for folder, _, _ in os.walk(top, topdown=False):
        Path(folder).rmdir()


def main() -> None:
    """Serve the test process at the other end of an inherited socket."""
    link = socket.socket(fileno=int(sys.argv[1]))
    link.set_inheritable(False)
    plan = rootfs.Plan(**json.loads(link.recv(1 << 16)))
    os.chdir("/")
    guard = Guard(link, plan)
    try:
        guard.serve()
    finally:
        guard.close()


if __name__ == "__main__":
    main()

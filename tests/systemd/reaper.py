"""The parent process of the systemd under test: keeps its files between boots and cleans up.

The test process sends `boot`, `off`, `reboot` or `cut` and receives `started`, `ready` and `ended`,
one JSON object per packet. When it closes the socket, or dies, the machine is removed completely.
All mounts are in mount namespaces of this process and its children, so they need no unmounting.
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


class Reaper:
    """One machine: a file system that survives reboots, and at most one running systemd."""

    def __init__(self, link: socket.socket, spec: rootfs.MachineSpec) -> None:
        self.link = link
        self.spec = spec
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self.devices: set[int] = set()  # Of file systems that exist only in the machine.
        self.pid = 0
        self.pidfd = -1
        self.ready = False
        linux.unshare(linux.CLONE_NEWNS)
        rootfs.prepare(spec)
        self.cgroup = _cgroup_root(spec) / spec.name
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(os.fspath(spec.host / "notify"))

    def serve(self) -> None:
        """Carry out commands of the test process until it closes the link."""
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
        """Carry out one command; return False at the end of the connection."""
        name = self.link.recv(4096).decode()
        if name == "boot":
            self.boot()
        elif name:
            self.signal(SIGNALS[name])
        return bool(name)

    def boot(self) -> None:
        """Start systemd as PID 1 of new namespaces."""
        boot_id = Path(self.spec.state, "boot_id")
        boot_id.write_text(f"{uuid.uuid4()}\n")
        self.cgroup.mkdir()
        (self.cgroup / "harness").mkdir()
        linux.unshare(linux.CLONE_NEWPID)
        self.pid = os.fork()
        if self.pid == 0:
            self._become_init(boot_id)
        linux.setns(self.own_pids, linux.CLONE_NEWPID)  # Otherwise the next fork fails.
        self.pidfd = os.pidfd_open(self.pid)
        self.ready = False
        self.send(event="started", pid=self.pid, cgroup=os.fspath(self.cgroup))

    def _become_init(self, boot_id: Path) -> None:
        try:
            linux.die_with_parent()
            (self.cgroup / "cgroup.procs").write_text("0")
            linux.unshare(NEW_NAMESPACES)
            rootfs.become_systemd(self.spec, boot_id, console=sys.stderr.fileno())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def notified(self) -> None:
        """Report to the test process that the last job of the boot has ended."""
        message = self.notify.recv(4096)
        if not self.ready and b"READY=1" in message.splitlines():
            self.ready = True
            self._note_devices()
            self.send(event="ready")

    def signal(self, number: int) -> None:
        """Send a signal to PID 1, if it runs."""
        if self.pidfd >= 0:
            self._note_devices()
            signal.pidfd_send_signal(self.pidfd, number)

    def ended(self) -> None:
        """Clean up after a systemd that has exited, and with it every process of its namespace."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1
        self._detach_loops()
        _remove_cgroup(self.cgroup)
        self.send(event="ended", code=os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """Kill the machine and remove its files."""
        if self.pidfd >= 0:
            self.signal(signal.SIGKILL)
            self.ended()
        linux.unmount(self.spec.state)
        Path(self.spec.state).rmdir()

    def send(self, **event: object) -> None:
        """Send an event, unless the test process has closed the connection."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.link.send(json.dumps(event).encode())

    def _note_devices(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            self.devices |= linux.machine_devices(self.pid)

    def _detach_loops(self) -> None:
        for name, device in linux.attached_loops().items():
            if device in self.devices:
                linux.detach_loop(name)


def _cgroup_root(spec: rootfs.MachineSpec) -> Path:
    """Find the cgroup2 hierarchy; without one, mount it in this process's mount namespace."""
    for mount in linux.mounts():
        if mount.fstype == "cgroup2":
            return Path(mount.point)
    root = Path(spec.state, "cgroup")
    root.mkdir()
    linux.mount("cgroup2", root, fstype="cgroup2")
    return root


def _remove_cgroup(top: Path) -> None:
    """Remove a cgroup and its children once the last process has exited."""
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
    spec = rootfs.MachineSpec(**json.loads(link.recv(1 << 16)))
    os.chdir("/")
    reaper = Reaper(link, spec)
    try:
        reaper.serve()
    finally:
        reaper.close()


if __name__ == "__main__":
    main()

"""How a process of the host becomes one of the machine."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.systemd import linux

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
# Joins the machine's cgroup first: systemd could not move a process from outside into a scope.
JOIN = ("/bin/sh", "-c", 'echo 0 >"$0" && exec "$@"')


def enter(pid: int, cgroup_procs: Path) -> list[str]:
    """Build the prefix that runs a command beside PID 1, in a cgroup of its own."""
    nsenter = [tool("nsenter"), f"--target={pid}", *NAMESPACES, "--"]
    return [*JOIN, os.fspath(cgroup_procs), *nsenter]


def tool(name: str) -> str:
    """Find a program of the host."""
    found = shutil.which(name, path=ENVIRONMENT["PATH"])
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found


class InnerProcess(subprocess.Popen[str]):
    """A process inside; signals go to it, not to the nsenter that waits for it."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the process inside."""
        if self.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            inner = linux.children(self.pid)
            if inner:
                os.kill(inner[0], sig)
            else:
                os.killpg(self.pid, sig)

    def kill_all(self) -> None:
        """Kill the process and what it started, unless that left its process group."""
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)

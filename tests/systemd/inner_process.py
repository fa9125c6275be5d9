"""Processes of the host that enter the namespaces of the machine."""

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
# Joins the machine's cgroup first: systemd cannot move a process from outside into a scope.
JOIN = ("/bin/sh", "-c", 'echo 0 >"$0" && exec "$@"')


def enter(pid: int, cgroup_procs: Path) -> list[str]:
    """Return the prefix that runs a command in the namespaces of PID 1 and in a cgroup."""
    nsenter = [tool("nsenter"), f"--target={pid}", *NAMESPACES, "--"]
    return [*JOIN, os.fspath(cgroup_procs), *nsenter]


def tool(name: str) -> str:
    """Return the path of a program of the host."""
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    return path


class InnerProcess(subprocess.Popen[str]):
    """A process inside; signals go to it, not to its parent nsenter."""

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
        """Kill the process group of the process."""
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)

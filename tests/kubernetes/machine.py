"""A machine of the cluster: a mount namespace with /run, /var and /etc of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kubernetes.processes import ClusterProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INIT = Path(__file__).with_name("machine_init.py")
RUN_S = 60


class NamespaceMachine:
    """A namespace that its first process keeps; with that process its mounts end.

    `links` are symbolic links, or empty folders without a target; `binds` are folders of the host,
    which outlive the machine.
    """

    def __init__(
        self, links: Mapping[str, str | Path], binds: Mapping[str, Path] | None = None
    ) -> None:
        words = [f"{name}={target}" for name, target in links.items()]
        folders = [f"{name}={folder}" for name, folder in (binds or {}).items()]
        self._arguments = [*words, "--", *folders]
        self._init: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        """Make the namespace."""
        command = ["unshare", "--mount", "--propagation", "private"]
        self._init = subprocess.Popen(
            [*command, sys.executable, str(INIT), *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == "ready\n", "the machine did not start"

    def off(self) -> None:
        """End the namespace; its processes have ended before."""
        if self._init is not None:
            init, self._init = self._init, None
            init.kill()
            init.communicate()

    @property
    def root(self) -> Path:
        """The root of the machine, as a path of the host."""
        assert self._init is not None, "the machine is off"
        return Path(f"/proc/{self._init.pid}/root")

    def words(self, *words: str | Path) -> list[str]:
        """Return the command that runs another one in the machine."""
        assert self._init is not None, "the machine is off"
        enter = ["nsenter", "--mount", "--root", "--wdns=/", f"--target={self._init.pid}"]
        return [*enter, *map(str, words)]

    def run(self, *words: str | Path) -> str:
        """Run a command in the machine and return its output."""
        done = subprocess.run(
            self.words(*words), capture_output=True, text=True, timeout=RUN_S, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def mounts(self, part: str) -> list[str]:
        """Return the mount points of the machine that have a part of a path in them."""
        listed = self.run("cat", "/proc/self/mountinfo").splitlines()
        return [path for line in listed if part in (path := line.split()[4])]


class Program(ClusterProcess):
    """A program in a machine."""

    def __init__(
        self,
        log: Path,
        machine: NamespaceMachine,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(log, command, environment)
        self._machine, self.command = machine, command

    def start(self) -> None:
        """Start the program in the machine, which may have booted again."""
        self.words = self._machine.words(*self.command)
        super().start()

"""A real systemd, D-Bus and polkit as PID 1 of private namespaces.

with SystemdHost() as host:
    host.run("systemd-run", "--wait", "true")
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.systemd import linux
from tests.systemd.inner_process import ENVIRONMENT, InnerProcess, enter, tool
from tests.systemd.rootfs import VOLATILE, MachineSpec
from tests.systemd.wrapper import CHECKOUT, HostError, ReaperWrapper

__all__ = ["Bind", "HostError", "InnerCommandFailed", "InnerProcess", "InnerResult", "SystemdHost"]


class InnerCommandFailed(Exception):
    """A command inside failed or exceeded its timeout."""


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host that is mounted inside."""

    source: Path
    inner: str
    readonly: bool = True

    def __post_init__(self) -> None:
        if not self.readonly and self.inner.startswith(VOLATILE):
            raise ValueError(f"{self.inner}: systemd-tmpfiles could remove the host's files")


@dataclass(frozen=True)
class InnerResult:
    """Exit code and output of a command inside."""

    rc: int
    stdout: str
    stderr: str


class SystemdHost:
    """A machine with its own systemd; its files survive a reboot and are removed by `down`."""

    def __init__(
        self, *, binds: Sequence[Bind] = (), trees: Sequence[Path] = (), size: str = "2g"
    ) -> None:
        self.binds = [*needed_binds(), *binds]
        self.trees = list(trees)
        self.size = size
        self.name = f"zfsilo-{uuid.uuid4().hex[:12]}"
        self.state = ""  # Output of `systemctl is-system-running` after the boot.
        self.boot_mounts: frozenset[str] = frozenset()
        self._pid = 0
        self._cgroup = ""
        self._wrapper: ReaperWrapper | None = None

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.down()
        else:
            self.close()

    def boot(self, *, timeout_s: float = 60) -> None:
        """Start systemd and wait until the last job of the boot has ended."""
        if self._wrapper is None:
            self._wrapper = ReaperWrapper(self._spec())
        deadline = time.monotonic() + timeout_s
        self._wrapper.send("boot")
        started = self._wrapper.expect("started", deadline)
        self._pid, self._cgroup = started["pid"], started["cgroup"]
        self._wrapper.expect("ready", deadline)
        answer = self.run("systemctl", "is-system-running", "--wait", check=False)
        self.state = answer.stdout.strip()
        if self.state not in ("running", "degraded"):
            raise HostError(f"booted to {self.state!r}\n{self.journal()[-4000:]}")
        self.boot_mounts = frozenset(mount.point for mount in linux.mounts(self.pid))

    def down(self, *, timeout_s: float = 60) -> None:
        """Power off cleanly and remove the machine."""
        try:
            if self.running:
                self._end("off", timeout_s)
        finally:
            self.close()

    def reboot(self, *, timeout_s: float = 60) -> None:
        """Shut down cleanly and boot again with the same files and a new boot id."""
        self._end("reboot", timeout_s)
        self.boot(timeout_s=timeout_s)

    def power_cut(self, *, timeout_s: float = 60) -> None:
        """Kill PID 1 and with it all processes; then boot again with the same files."""
        self._end("cut", timeout_s)
        self.boot(timeout_s=timeout_s)

    def wait_off(self, *, timeout_s: float = 60) -> None:
        """Wait for a shutdown that was requested inside; `boot` may follow."""
        self._started.expect("ended", time.monotonic() + timeout_s)
        self._pid = 0

    def close(self) -> None:
        """Remove the machine, running or not."""
        self._pid = 0
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None:
            wrapper.close()

    def _end(self, command: str, timeout_s: float) -> None:
        assert self.running, "the machine does not run"
        self._started.send(command)
        self.wait_off(timeout_s=timeout_s)

    def _spec(self) -> MachineSpec:
        state = tempfile.mkdtemp(prefix=f"{self.name}-")
        trees = [os.fspath(tree.resolve()) for tree in self.trees]
        binds = [(os.fspath(b.source.resolve()), b.inner, b.readonly) for b in self.binds]
        return MachineSpec(self.name, state, self.size, trees, binds)

    @property
    def _started(self) -> ReaperWrapper:
        if self._wrapper is None:
            raise HostError("the machine was not booted or is closed")
        return self._wrapper

    @property
    def running(self) -> bool:
        """Whether the machine was booted and not shut down by the test."""
        return self._pid != 0

    @property
    def pid(self) -> int:
        """The process id, on the host, of the machine's PID 1."""
        if not self.running:
            raise HostError("the machine is off")
        return self._pid

    @property
    def root(self) -> Path:
        """The machine's root as a path of the host; absolute links below it resolve to the host!"""
        return Path(f"/proc/{self.pid}/root")

    @property
    def upper(self) -> Path:
        """The layer with every file that the machine wrote outside /run, /tmp and /dev."""
        return self._started.root / self._started.state.relative_to("/") / "upper"

    @property
    def cgroup_procs(self) -> Path:
        """The cgroup file with the process ids, on the host, of processes of `run` and `start`."""
        return self.cgroup / "harness/cgroup.procs"

    @property
    def cgroup(self) -> Path:
        """The cgroup, on the host, of all processes of the machine."""
        return self._started.root / self._cgroup.lstrip("/")

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        input: str | bytes | None = None,  # noqa: A002 - named as in subprocess.run
        timeout_s: float = 30,
        env: Mapping[str, str] | None = None,
        uid: int | None = None,
    ) -> InnerResult:
        """Run a command inside and wait for its end."""
        command = shlex.join(os.fspath(word) for word in argv)
        text = os.fsdecode(input) if isinstance(input, bytes) else input
        with self.start(*argv, env=env, uid=uid, stdin=text is not None) as process:
            try:
                stdout, stderr = process.communicate(text, timeout=timeout_s)
            except BaseException as error:
                process.kill_all()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise InnerCommandFailed(f"{command}: timeout after {timeout_s} s") from None
                raise
        if check and process.returncode != 0:
            raise InnerCommandFailed(f"{command}: exit code {process.returncode}\n{stdout}{stderr}")
        return InnerResult(process.returncode, stdout, stderr)

    def start(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        uid: int | None = None,
        stdin: bool = False,
    ) -> InnerProcess:
        """Start a command inside; use it as a context manager, or kill and close it."""
        as_user = self._as_user(uid) if uid is not None else []
        return InnerProcess(
            [*enter(self.pid, self.cgroup_procs), *as_user, *argv],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            env=ENVIRONMENT | dict(env or {}),
            cwd="/",
            start_new_session=True,
        )

    def _as_user(self, uid: int) -> list[str]:
        """Return the prefix that changes to a user, with its groups in /etc inside."""
        entry = self.run("getent", "passwd", str(uid), check=False).stdout.split(":")
        exists = len(entry) > 3
        gid, groups = (entry[3], "--init-groups") if exists else (str(uid), "--clear-groups")
        return ["setpriv", f"--reuid={uid}", f"--regid={gid}", groups, "--"]

    def read(self, path: str | Path) -> str:
        """Read a file inside."""
        return self.run("cat", "--", path).stdout

    def write(self, path: str | Path, text: str, mode: int = 0o644) -> None:
        """Write a file inside and create its parent folders."""
        self.run("install", "-D", f"--mode={mode:04o}", "/dev/stdin", path, input=text)

    def copy_in(self, source: Path, inner: str | Path) -> None:
        """Copy a file, or the content of a folder, to a place inside."""
        if source.is_dir():
            pack = [tool("tar"), "-C", os.fspath(source), "-c", "."]
            archive = subprocess.run(pack, stdout=subprocess.PIPE, check=True).stdout
            self.run("mkdir", "-p", "--", inner)
            self.run("tar", "-C", inner, "-x", input=archive)
        else:
            mode = f"--mode={source.stat().st_mode & 0o7777:04o}"
            self.run("install", "-D", mode, "/dev/stdin", inner, input=source.read_bytes())

    def exists(self, path: str | Path) -> bool:
        """Return whether a file exists inside."""
        return self.run("test", "-e", path, check=False).rc == 0

    def journal(self, unit: str | None = None, *, since: float | None = None) -> str:
        """Read the journal of all boots, of one unit, or since a time as of time.time()."""
        self.run("journalctl", "--sync")
        only = [] if unit is None else [f"--unit={unit}"]
        only += [] if since is None else [f"--since=@{since:.6f}"]
        return self.run("journalctl", "--no-pager", "--output=short-precise", "--all", *only).stdout


def needed_binds() -> list[Bind]:
    """List the folders of checkout and Python that are not in the overlay of the host's root."""
    paths = {CHECKOUT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    hidden = [p for p in paths if linux.mount_of(p) != "/" or os.fspath(p).startswith(VOLATILE)]
    return [Bind(path, os.fspath(path)) for path in sorted(hidden)]

"""The only place that starts processes: argument lists, a deadline, and typed errors.

A tool gets no shell, no environment of ours, no descriptors but its own and those it is to inherit
(the operation's lock: a tool that outlives a killed worker still holds it). No secret may ever be
an argument or an input: arguments stand in /proc for everybody.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

from zfsilod.model.errors import CommandFailed, FailedPrecondition, Unavailable

TOOLS = {
    "blkid": "util-linux",
    "e2fsck": "e2fsprogs",
    "iscsiadm": "open-iscsi",
    "journalctl": "systemd",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "modprobe": "kmod",
    "mount": "mount",
    "resize2fs": "e2fsprogs",
    "systemctl": "systemd",
    "tune2fs": "e2fsprogs",
    "udevadm": "udev",
    "umount": "mount",
    "unshare": "util-linux",
    "xfs_admin": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "zfs": "zfsutils-linux",
    "zpool": "zfsutils-linux",
}
"""Every tool that the adapters, doctor and setup run, with the Debian package that has it."""

# What each role cannot do without; those of XFS are for who wants XFS.
SERVER_TOOLS = ("zfs", "zpool", "udevadm", "modprobe")
CONSUMER_TOOLS = (
    "iscsiadm",
    "mount",
    "umount",
    "blkid",
    "mkfs.ext4",
    "e2fsck",
    "resize2fs",
    "tune2fs",
    "unshare",
)

TOOLS_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS_PATH_VARIABLE = "ZFSILO_TOOLS_PATH"  # tests put tools of their own in front

MAX_OUTPUT_BYTES = 16 * 1024 * 1024
MAX_STDERR_CHARACTERS = 2000
TERM_GRACE_S = 2.0
KILL_GRACE_S = 1.0
READ_BYTES = 65536


class Completed:
    """How a tool ended, and what it said."""

    def __init__(self, argv: tuple[str, ...], rc: int, stdout: str, stderr: str) -> None:
        self.argv = argv
        self.rc = rc
        self.stdout = stdout
        self.stderr = stderr

    def failed(self, message: str = "") -> CommandFailed:
        """Log this as a failure and return its error, for a failure that has no better name."""
        stderr = self.stderr.strip()[-MAX_STDERR_CHARACTERS:]
        command = _shown(self.argv)
        _log(f"{command}: exit code {self.rc}: {stderr}")
        return CommandFailed(
            message or f"{self.argv[0]} failed with exit code {self.rc}: {_last_line(stderr)}",
            command=command,
            exit_code=str(self.rc),
            stderr=stderr,
        )


class Runner:
    """Runs tools: `runner(["zfs", "list"], timeout_s=10)`."""

    def __init__(self, inherit: tuple[int, ...] = ()) -> None:
        self._inherit = inherit
        self._path = os.environ.get(TOOLS_PATH_VARIABLE, TOOLS_PATH)
        self._found: dict[str, str] = {}

    def __call__(
        self,
        argv: list[str],
        *,
        timeout_s: float,
        input: str = "",  # noqa: A002 - the name that subprocess gave it
        ok: tuple[int, ...] = (0,),
    ) -> Completed:
        """Run a tool. Raises CommandFailed for an exit code not in `ok`, Unavailable when late."""
        process = self._start(argv, input)
        try:
            stdout, stderr = _collect(process, time.monotonic() + timeout_s)
        except TimeoutError as error:
            raise _late(argv, timeout_s) from error
        finally:
            _end(process)
        completed = Completed(tuple(argv), process.returncode, stdout, stderr)
        if completed.rc not in ok:
            raise completed.failed()
        return completed

    def find(self, tool: str) -> str:
        """Return a tool's absolute path. Raises FailedPrecondition that names its package."""
        if tool not in self._found:
            for folder in self._path.split(":"):
                path = f"{folder}/{tool}"
                if os.access(path, os.X_OK):
                    self._found[tool] = path
                    break
            else:
                package = TOOLS[tool]
                raise FailedPrecondition(
                    f"{tool} is not installed on this host: install the package {package}",
                    reason="TOOL_MISSING",
                    tool=tool,
                    package=package,
                )
        return self._found[tool]

    def _start(self, argv: list[str], text: str) -> subprocess.Popen[bytes]:
        stdin = _readable(text)
        try:
            return subprocess.Popen(
                [self.find(argv[0]), *argv[1:]],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"LC_ALL": "C.UTF-8", "PATH": TOOLS_PATH},
                cwd="/",
                pass_fds=self._inherit,
                start_new_session=True,  # its group is ours to kill; no terminal can interrupt it
            )
        finally:
            if stdin != subprocess.DEVNULL:
                os.close(stdin)


def missing_tools(names: tuple[str, ...]) -> dict[str, str]:
    """Return those tools that are not installed here, with the Debian package of each."""
    run = Runner()
    missing = {}
    for name in names:
        try:
            run.find(name)
        except FailedPrecondition:
            missing[name] = TOOLS[name]
    return missing


def _readable(text: str) -> int:
    """Return a descriptor to read the text from: a file in memory, so that no write can block."""
    if not text:
        return subprocess.DEVNULL
    descriptor = os.memfd_create("input")
    os.write(descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _collect(process: subprocess.Popen[bytes], deadline: float) -> tuple[str, str]:
    """Read what a tool says until it has ended. Raises TimeoutError."""
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = [process.stdout.fileno(), process.stderr.fileno()]
    said = {pipe: bytearray() for pipe in pipes}
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        for descriptor in (*pipes, ended):
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        while True:
            left_ms = (deadline - time.monotonic()) * 1000
            ready = dict(poll.poll(max(left_ms, 0)))
            if not ready:
                raise TimeoutError
            for pipe in pipes:
                if pipe in ready and not _take(pipe, said[pipe]):
                    poll.unregister(pipe)
            if ended in ready:
                break
        for pipe in pipes:  # they may stay open in a helper left behind: take only what is there
            while _take(pipe, said[pipe]) and len(said[pipe]) < MAX_OUTPUT_BYTES:
                pass
    finally:
        os.close(ended)
    stdout, stderr = (said[pipe].decode(errors="replace") for pipe in pipes)
    return stdout, stderr


def _take(pipe: int, said: bytearray) -> int:
    """Take a piece out of a pipe; 0 when it is empty. What is too much is dropped."""
    try:
        piece = os.read(pipe, READ_BYTES)
    except BlockingIOError:
        return 0
    said += piece[: MAX_OUTPUT_BYTES - len(said)]
    return len(piece)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Reap a tool; one that still runs is ended with all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        if not _wait(process, TERM_GRACE_S):
            os.killpg(process.pid, signal.SIGKILL)
            _wait(process, KILL_GRACE_S)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False  # in the kernel, deaf to signals; the inherited lock tells when it is gone
    return True


def _late(argv: list[str], timeout_s: float) -> Unavailable:
    command = _shown(tuple(argv))
    _log(f"{command}: no end within {timeout_s:.0f} s")
    return Unavailable(
        f"{argv[0]} did not end within {timeout_s:.0f} s",
        reason="TOOL_TIMEOUT",
        command=command,
    )


def _shown(argv: tuple[str, ...]) -> str:
    import shlex  # 5 ms that only a failure costs

    return shlex.join(argv)


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else "it said nothing"


def _log(line: str) -> None:
    """Write to the journal, which is where a unit's standard error goes."""
    sys.stderr.write(f"{line}\n")

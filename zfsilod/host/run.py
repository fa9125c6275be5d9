"""Runs the tools of the host: argument lists, a deadline, and typed errors.

The only module that starts processes. A tool runs without a shell, in a clean environment, and
inherits no descriptor but the operation's lock, so that a tool that outlives a killed worker still
holds it. A secret is never an argument, since proc_pid_cmdline(5) shows arguments to every user.

With ZFSILO_DEBUG=1 each command is written to standard error, which is the journal of the worker's
unit, with its exit code and its duration in milliseconds. The input of a command is never written.
"""

from __future__ import annotations

import os
import select
import sys
import time

from zfsilod.model.errors import CommandFailed, FailedPrecondition, Unavailable
from zfsilod.model.lean import TYPE_CHECKING, signal

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

TOOLS = {
    "blkid": "util-linux",
    "dmsetup": "dmsetup",
    "e2fsck": "e2fsprogs",
    "iscsiadm": "open-iscsi",
    "journalctl": "systemd",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "modprobe": "kmod",
    "mount": "mount",
    "multipath": "multipath-tools",
    "multipathd": "multipath-tools",
    "resize2fs": "e2fsprogs",
    "systemctl": "systemd",
    "systemd-creds": "systemd",
    "systemd-analyze": "systemd",
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
"""Every tool that the adapters, doctor and setup run, with its Debian package."""

# The tools that each role needs. Those of xfsprogs are needed for volumes with XFS only.
SERVER_TOOLS = ("zfs", "zpool", "udevadm", "modprobe")
CLIENT_TOOLS = (
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
TOOLS_PATH_VARIABLE = "ZFSILO_TOOLS_PATH"  # lets tests put scripts in place of tools
DEBUG_VARIABLE = "ZFSILO_DEBUG"

MAX_OUTPUT_BYTES = 16 * 1024 * 1024
MAX_STDERR_CHARACTERS = 2000
TERM_GRACE_S = 2.0
KILL_GRACE_S = 1.0
INTERNAL = 254  # exit code of a call that raised no OSError; errno(3) has lower ones
READ_BYTES = 65536
NO_DESCRIPTOR = -1
STANDARD = 3  # descriptors below this one are the standard ones
IGNORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python; a tool has their default action


class Completed:
    """The exit code and the output of a tool that has ended."""

    def __init__(self, argv: tuple[str, ...], rc: int, stdout: str, stderr: str) -> None:
        self.argv = argv
        self.rc = rc
        self.stdout = stdout
        self.stderr = stderr

    def failed(self, message: str = "") -> CommandFailed:
        """Log the failure and return its error, for a failure without a more specific error."""
        stderr = self.stderr.strip()[-MAX_STDERR_CHARACTERS:]
        last_line = stderr.splitlines()[-1] if stderr else "no message"
        command = _quoted(self.argv)
        _log(f"{command}: exit code {self.rc}: {stderr}")
        return CommandFailed(
            message or f"{self.argv[0]} failed with exit code {self.rc}: {last_line}",
            command=command,
            exit_code=str(self.rc),
            stderr=stderr,
        )


class Runner:
    """Runs tools: `runner(["zfs", "list"], timeout_s=10)`.

    Each tool inherits the descriptors in `inherit`, beside its standard ones.
    """

    def __init__(self, inherit: tuple[int, ...] = ()) -> None:
        self._inherit = inherit
        self._search_path = os.environ.get(TOOLS_PATH_VARIABLE, TOOLS_PATH)
        self._debug = os.environ.get(DEBUG_VARIABLE) == "1"
        self._paths: dict[str, str] = {}

    def __call__(
        self,
        argv: list[str],
        *,
        timeout_s: float,
        input: str | bytes = "",  # noqa: A002 - as in subprocess.run()
        ok: tuple[int, ...] = (0,),
        inherit: tuple[int, ...] = (),
    ) -> Completed:
        """Run a tool to its end and return its output.

        `input` is its standard input, a file in memory. It inherits the descriptors in `inherit`
        too, and the working directory, which is / in the units. Raises CommandFailed for an exit
        code that is not in `ok`, Unavailable (TOOL_TIMEOUT) when the tool runs longer than
        `timeout_s`, and FailedPrecondition (TOOL_MISSING) when it is not installed.
        """
        started_at = time.monotonic()
        process = self.start(argv, input, inherit)
        try:
            stdout, stderr = _collect(process, started_at + timeout_s)
        except TimeoutError as error:
            raise timed_out(argv, timeout_s) from error
        finally:
            process.end()
            if self._debug:
                took_ms = 1000 * (time.monotonic() - started_at)
                command = _quoted(tuple(argv))
                _log(f"{command}: exit code {process.returncode}, {took_ms:.0f} ms")
        code = process.returncode
        assert code is not None, "a tool that was not late has exited"
        completed = Completed(tuple(argv), code, stdout, stderr)
        if completed.rc not in ok:
            raise completed.failed()
        return completed

    def call(self, function: Callable[[], None], command: str, *, timeout_s: float) -> Completed:
        """Make a system call that may hang, in a process of its own; the exit code is its errno.

        `command`: the tool's command that would do the same, for the log. The process holds the
        lock of the operation, as a tool does. Raises Unavailable (TOOL_TIMEOUT).
        """
        started_at = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _call_and_exit(function)
        argv = tuple(command.split(" "))
        exited = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(exited, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                signal.pidfd_send_signal(exited, signal.SIGKILL)
                raise timed_out(list(argv), timeout_s)
            _pid, status = os.waitpid(pid, 0)
        finally:
            os.close(exited)
        code = os.waitstatus_to_exitcode(status)
        if self._debug:
            _log(f"{command}: exit code {code}, {1000 * (time.monotonic() - started_at):.0f} ms")
        return Completed(argv, code, "", os.strerror(code) if code else "")

    def find(self, tool: str) -> str:
        """Return the absolute path of a tool. Raises FailedPrecondition that names its package."""
        if tool not in self._paths:
            for folder in self._search_path.split(":"):
                path = f"{folder}/{tool}"
                if os.access(path, os.X_OK):
                    self._paths[tool] = path
                    break
            else:
                package = TOOLS[tool]
                raise FailedPrecondition(
                    f"{tool} is not installed on this host; install the package {package}",
                    reason="TOOL_MISSING",
                    tool=tool,
                    package=package,
                )
        return self._paths[tool]

    def stream(
        self,
        argv: list[str],
        *,
        stdin: int = NO_DESCRIPTOR,
        stdout: int = NO_DESCRIPTOR,
        timeout_s: float,
    ) -> Completed:
        """Run a tool whose standard input or output is a descriptor, and return how it ended.

        Raises Unavailable (TOOL_TIMEOUT), and FailedPrecondition (TOOL_MISSING).
        """
        # Copies are not inherited, so that RunningTool does not close them before it uses them.
        own = os.open(os.devnull, os.O_RDONLY) if stdin == NO_DESCRIPTOR else os.dup(stdin)
        output = stdout if stdout == NO_DESCRIPTOR else os.dup(stdout)
        try:
            command = [self.find(argv[0]), *argv[1:]]
            process = RunningTool(command, own, self._inherit, output)
        finally:
            os.close(own)
            if output != NO_DESCRIPTOR:
                os.close(output)
        try:
            printed, errors = _collect(process, time.monotonic() + timeout_s)
        except TimeoutError as error:
            raise timed_out(argv, timeout_s) from error
        finally:
            process.end()
        code = process.returncode
        assert code is not None, "a tool that was not late has exited"
        return Completed(tuple(argv), code, printed, errors)

    def start(
        self, argv: list[str], content: str | bytes = "", inherit: tuple[int, ...] = ()
    ) -> RunningTool:
        """Start a tool; the caller ends it. `content` is its standard input."""
        path = self.find(argv[0])
        # Input is a file in memory, memfd_create(2): a write to a pipe could block.
        stdin = os.memfd_create("input") if content else os.open(os.devnull, os.O_RDONLY)
        try:
            if content:
                os.write(stdin, content.encode() if isinstance(content, str) else content)
                os.lseek(stdin, 0, os.SEEK_SET)
            return RunningTool([path, *argv[1:]], stdin, (*self._inherit, *inherit))
        finally:
            os.close(stdin)


class RunningTool:
    """A running tool, in a session of its own: a process group to kill, without a terminal."""

    def __init__(
        self, argv: list[str], stdin: int, inherit: tuple[int, ...], stdout: int = NO_DESCRIPTOR
    ) -> None:
        """Start it with posix_spawn(3), which copies no memory of this process."""
        self.returncode: int | None = None
        out, err = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        self.pipes = [out[0], err[0]]
        try:
            self.pid = os.posix_spawn(
                argv[0],
                argv,
                {"LC_ALL": "C.UTF-8", "PATH": TOOLS_PATH},
                file_actions=[
                    *((os.POSIX_SPAWN_DUP2, number, number) for number in inherit),
                    *((os.POSIX_SPAWN_CLOSE, number) for number in _inheritable() - {*inherit}),
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, out[1] if stdout == NO_DESCRIPTOR else stdout, 1),
                    (os.POSIX_SPAWN_DUP2, err[1], 2),
                ],
                setsid=True,
                setsigdef=IGNORED_SIGNALS,
            )
        except OSError:
            self._close()
            raise
        finally:
            os.close(out[1])
            os.close(err[1])
        try:
            self.exited = os.pidfd_open(self.pid)  # readable when it has exited: pidfd_open(2)
        except OSError:  # no descriptor is free
            os.killpg(self.pid, signal.SIGKILL)
            self._close()
            self.poll()
            raise

    def poll(self) -> int | None:
        """Return the exit code when it has exited, negative for a signal; reap it."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has exited; False when it still runs after `timeout_s`."""
        poll = select.poll()
        poll.register(self.exited, select.POLLIN)
        poll.poll(timeout_s * 1000)
        return self.poll() is not None

    def end(self) -> None:
        """Reap it. If it still runs, it is killed with its whole process group."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGTERM)
            if not self.wait(TERM_GRACE_S):
                os.killpg(self.pid, signal.SIGKILL)
                # It may hang in the kernel; the lock that it inherited shows when it has exited.
                self.wait(KILL_GRACE_S)
        os.close(self.exited)
        self._close()

    def _close(self) -> None:
        for pipe in self.pipes:
            os.close(pipe)


def _inheritable() -> set[int]:
    """Return the descriptors that a new process would inherit, besides the standard ones.

    Python makes none; those of socket activation and of a library may be.
    """
    numbers = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in numbers if number >= STANDARD and _is_inherited(number)}


def _is_inherited(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:  # it was the descriptor of the list, or another thread closed it
        return False


def missing_tools(names: tuple[str, ...]) -> dict[str, str]:
    """Return the tools that are not installed on this host, with the Debian package of each."""
    run = Runner()
    missing = {}
    for name in names:
        try:
            run.find(name)
        except FailedPrecondition:
            missing[name] = TOOLS[name]
    return missing


def _call_and_exit(function: Callable[[], None]) -> NoReturn:
    code = INTERNAL
    try:
        os.setsid()  # no terminal interrupts it
        function()
        code = 0
    except OSError as error:
        code = error.errno or INTERNAL
    finally:
        os._exit(code)  # neither the locks nor the store of its parent are released twice


def _collect(process: RunningTool, deadline: float) -> tuple[str, str]:
    """Read the output of a tool until it exits. Raises TimeoutError."""
    output = {pipe: bytearray() for pipe in process.pipes}
    poll = select.poll()
    for pipe in process.pipes:
        os.set_blocking(pipe, False)
    for descriptor in (*process.pipes, process.exited):
        poll.register(descriptor, select.POLLIN)
    while True:
        left_ms = (deadline - time.monotonic()) * 1000
        ready = dict(poll.poll(max(left_ms, 0)))
        if not ready:
            raise TimeoutError
        for pipe in process.pipes:
            if pipe in ready and not _read_piece(pipe, output[pipe]):
                poll.unregister(pipe)
        if process.exited in ready:
            break
    for pipe in process.pipes:  # a background child may keep it open: read only what it holds now
        while _read_piece(pipe, output[pipe]) and len(output[pipe]) < MAX_OUTPUT_BYTES:
            pass
    stdout, stderr = (output[pipe].decode(errors="replace") for pipe in process.pipes)
    return stdout, stderr


def _read_piece(pipe: int, output: bytearray) -> int:
    """Append a piece of a pipe to the output and return its length; 0 when the pipe is empty.

    Output beyond MAX_OUTPUT_BYTES is dropped.
    """
    try:
        piece = os.read(pipe, READ_BYTES)
    except BlockingIOError:
        return 0
    output += piece[: MAX_OUTPUT_BYTES - len(output)]
    return len(piece)


def timed_out(argv: list[str], timeout_s: float) -> Unavailable:
    """Log that a tool was too slow, and return the error."""
    command = _quoted(tuple(argv))
    _log(f"{command}: did not end within {timeout_s:.0f} s")
    return Unavailable(
        f"{argv[0]} did not end within {timeout_s:.0f} s",
        reason="TOOL_TIMEOUT",
        command=command,
    )


def _quoted(argv: tuple[str, ...]) -> str:
    import shlex  # takes 5 ms, which only a failure or debugging costs

    return shlex.join(argv)


def _log(line: str) -> None:
    """Write a line to standard error, which is the journal of the worker's unit."""
    sys.stderr.write(f"{line}\n")

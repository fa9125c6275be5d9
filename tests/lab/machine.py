"""One machine of the lab: commands, files, power, network link."""

from __future__ import annotations

import shlex
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.agent import Agent
from tests.lab.emulator import Hardware, MachinePaths, command_line
from tests.lab.errors import EmulatorError, GuestCommandFailed, Unreachable
from tests.lab.qmp import Monitor, connect, monitor
from tests.setup.say import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.lab.images.build import Images

FILE_TIMEOUT_S = 60
BOOT_TIMEOUT_S = 240
# Of the agent, which starts early in the boot.
FIRST_ANSWER_S = 150
BOOT_TRIES = 2
RESTORE_TIMEOUT_S = 120
POLL_S = 0.02


@dataclass(frozen=True)
class GuestResult:
    """Exit code, output and duration of a command inside a machine."""

    rc: int
    stdout: str
    stderr: str
    seconds: float


class Machine:
    """A running machine, or one whose power is off."""

    def __init__(self, hardware: Hardware, images: Images, paths: MachinePaths) -> None:
        self.hardware = hardware
        self.images = images
        self.paths = paths
        self.agent = Agent(paths.agent)
        self.emulator: subprocess.Popen[bytes] | None = None
        self.link_is_up = True

    @property
    def name(self) -> str:
        """The name: give or take."""
        return self.hardware.name

    def run(
        self,
        *argv: str,
        input: str | bytes | None = None,  # noqa: A002 - as subprocess calls it
        timeout_s: float = 60,
        check: bool = True,
    ) -> GuestResult:
        """Run a command as root; with `check`, GuestCommandFailed for an exit code other than 0."""
        data = input.encode() if isinstance(input, str) else input or b""
        reply = self.agent.run(list(argv), data, timeout_s)
        out, err = (text.decode(errors="replace") for text in (reply.out, reply.err))
        if check and reply.rc != 0:
            raise GuestCommandFailed(
                f"{self.name}: {shlex.join(argv)}: exit code {reply.rc}\n{out}{err}"
            )
        return GuestResult(reply.rc, out, err, reply.seconds)

    def sh(self, text: str, *, timeout_s: float = 60, check: bool = True) -> GuestResult:
        """Run a shell script, which stops at its first error."""
        return self.run("sh", "-euc", text, timeout_s=timeout_s, check=check)

    def put(self, path: str, data: bytes, mode: int) -> None:
        """Write a file and create its folders."""
        reply = self.agent.put(path, data, mode, FILE_TIMEOUT_S)
        if reply.rc != 0:
            raise GuestCommandFailed(
                f"{self.name}: put {path}: {reply.err.decode(errors='replace')}"
            )

    def get(self, path: str) -> bytes:
        """Read a file."""
        reply = self.agent.get(path, FILE_TIMEOUT_S)
        if reply.rc != 0:
            raise GuestCommandFailed(
                f"{self.name}: get {path}: {reply.err.decode(errors='replace')}"
            )
        return reply.out

    def forward(self, guest_port: int) -> int:
        """The port of 127.0.0.1 on this host that is forwarded to a port of the machine."""
        return dict(self.paths.forwards)[guest_port]

    def link(self, up: bool) -> None:
        """Connect or disconnect this machine's end of the network between the machines."""
        with self.monitor() as opened:
            opened.execute("set_link", name="lan", up=up)
        self.link_is_up = up

    def journal(self) -> str:
        """The journal of all boots."""
        return self.run("journalctl", "--no-pager", "--all", "-o", "short-precise").stdout

    def power_cut(self) -> float:
        """Kill the emulator, start it on the same disks, and wait for the end of the boot."""
        started = time.monotonic()
        self.cold_start()
        return time.monotonic() - started

    def reboot(self) -> float:
        """Reboot cleanly and wait for the end of the boot."""
        started = time.monotonic()
        self.run("systemctl", "--no-block", "reboot")
        if self.emulator is not None:
            # With -no-reboot a reboot of the guest ends the emulator.
            self.emulator.wait(BOOT_TIMEOUT_S)
        self.cold_start()
        return time.monotonic() - started

    def cold_start(self) -> str:
        """Boot from the present disks and wait for the end of the boot."""
        for tries_left in reversed(range(BOOT_TRIES)):
            self.power_off()
            self.power_on()
            try:
                self.wait_for_answer(FIRST_ANSWER_S)
                break
            except Unreachable:
                # Under emulation about one boot in a hundred hangs before user space.
                if not tries_left:
                    raise
                say(f"{self.name} did not boot, retrying; {self.console_tail()}")
        return self.wait_until_running()

    def console_tail(self) -> str:
        """The last lines of the console."""
        if not self.paths.console.exists():
            return f"{self.name} has no console output"
        lines = self.paths.console.read_text(errors="replace").splitlines()[-20:]
        return f"{self.name}'s console:\n" + "\n".join(lines)

    def power_off(self) -> None:
        """Kill the emulator; data that the guest has not flushed is lost."""
        if self.emulator is not None:
            self.emulator.kill()
            self.emulator.wait()
            self.emulator = None
        self.agent.close()

    def power_on(self, *, snapshot: Path | None = None) -> None:
        """Start the emulator: cold, or from a snapshot."""
        for socket in (self.paths.lan, self.paths.agent, self.paths.monitor):
            socket.unlink(missing_ok=True)
        argv = command_line(self.hardware, self.images, self.paths)
        if snapshot is not None:
            argv += ["-incoming", f"file:{snapshot}"]
        with self.paths.log.open("ab") as log:
            # In its own session, so that Ctrl-C interrupts the tests only.
            self.emulator = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if not self.link_is_up:
            self.link(up=False)

    def resume(self) -> None:
        """Resume a machine that was started from a snapshot, and set its clock."""
        with self.monitor() as opened:
            while (status := opened.execute("query-status")["status"]) == "inmigrate":
                time.sleep(POLL_S)
            if status != "running":
                opened.execute("cont")
        self.wait_for_answer(RESTORE_TIMEOUT_S)
        self.run("date", "--set", f"@{time.time():.2f}")

    def freeze(self) -> None:
        """Stop the machine's processors and flush its disks."""
        with self.monitor() as opened:
            opened.execute("stop")

    def save_state(self, target: Path) -> None:
        """Write memory and device state of a frozen machine to a file and stop the emulator."""
        with self.monitor() as opened:
            opened.execute("migrate-set-parameters", max_bandwidth=1 << 40)
            opened.execute("migrate", uri=f"file:{target}")
            while (state := opened.execute("query-migrate"))["status"] != "completed":
                if state["status"] in ("failed", "cancelled"):
                    raise EmulatorError(f"{self.name}: {state.get('error-desc', state['status'])}")
                time.sleep(POLL_S)
            # Quitting flushes the overlays; killing would not.
            opened.execute("quit")
        if self.emulator is not None:
            self.emulator.wait(BOOT_TIMEOUT_S)
        self.power_off()

    def wait_for_answer(self, timeout_s: float) -> None:
        """Wait until the agent inside answers."""
        end = time.monotonic() + timeout_s
        while True:
            self.check_emulator()
            try:
                self.agent.ping(timeout_s=2)
            except Unreachable:
                self.agent.close()
                if time.monotonic() > end:
                    raise
                time.sleep(POLL_S)
            else:
                return

    def wait_until_running(self) -> str:
        """Wait for the end of the boot; return the state of systemd: running or degraded."""
        self.wait_for_answer(BOOT_TIMEOUT_S)
        command = ("systemctl", "is-system-running", "--wait")
        return self.run(*command, timeout_s=BOOT_TIMEOUT_S, check=False).stdout.strip()

    def check_emulator(self) -> None:
        """Raise if the emulator has exited."""
        if self.emulator is None:
            raise Unreachable(f"{self.name} is powered off")
        if self.emulator.poll() is not None:
            raise EmulatorError(f"{self.name}: {self.paths.log.read_text(errors='replace')}")

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Connect to the emulator's monitor, as soon as it listens."""
        end = time.monotonic() + RESTORE_TIMEOUT_S
        while (connection := connect(self.paths.monitor)) is None:
            self.check_emulator()
            if time.monotonic() > end:
                raise EmulatorError(f"{self.name}: the monitor of the emulator does not listen")
            time.sleep(POLL_S)
        with monitor(connection) as opened:
            yield opened


def create_overlays(
    paths: MachinePaths, bases: Mapping[str, Path], sizes: Mapping[str, str]
) -> None:
    """Create overlays over the base images, and empty disks where there is no base."""
    paths.folder.mkdir(parents=True)
    for name in ("root", *sizes):
        base = bases.get(name)
        if base is None:
            words = [str(paths.disk(name)), sizes[name]]
        else:
            kind = "qcow2" if base.suffix == ".qcow2" else "raw"
            words = ["-b", str(base), "-F", kind, str(paths.disk(name))]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words], check=True)

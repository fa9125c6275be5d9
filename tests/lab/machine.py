"""One machine of the lab: commands, files, power, link."""

from __future__ import annotations

import shlex
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.agent import Agent
from tests.lab.emulator import Hardware, SandboxPart, command_line
from tests.lab.errors import CommandFailed, EmulatorError, Unreachable
from tests.lab.qmp import Monitor, connect, monitor
from tests.setup.say import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.lab.images.build import Images

FILE_TIMEOUT_S = 60
BOOT_TIMEOUT_S = 240
# Of the agent, which is up long before the rest.
FIRST_ANSWER_S = 150
BOOT_TRIES = 2
RESTORE_TIMEOUT_S = 120
POLL_S = 0.02


@dataclass(frozen=True)
class Result:
    """How a command inside a machine ended."""

    rc: int
    stdout: str
    stderr: str
    seconds: float


class Machine:
    """A running machine, or one whose power is off."""

    def __init__(self, hardware: Hardware, images: Images, place: SandboxPart) -> None:
        self.hardware = hardware
        self.images = images
        self.place = place
        self.agent = Agent(place.agent)
        self.emulator: subprocess.Popen[bytes] | None = None
        self.link_is_up = True

    @property
    def name(self) -> str:
        """give or take."""
        return self.hardware.name

    def run(
        self,
        *argv: str,
        input: str | bytes | None = None,  # noqa: A002 - as subprocess calls it
        timeout_s: float = 60,
        check: bool = True,
    ) -> Result:
        """Run a command as root; with `check` an exit code other than 0 raises CommandFailed."""
        data = input.encode() if isinstance(input, str) else input or b""
        reply = self.agent.run(list(argv), data, timeout_s)
        out, err = (text.decode(errors="replace") for text in (reply.out, reply.err))
        if check and reply.rc != 0:
            raise CommandFailed(
                f"{self.name}: {shlex.join(argv)} ended with {reply.rc}\n{out}{err}"
            )
        return Result(reply.rc, out, err, reply.seconds)

    def sh(self, text: str, *, timeout_s: float = 60, check: bool = True) -> Result:
        """Run a shell script, which ends at its first error."""
        return self.run("sh", "-euc", text, timeout_s=timeout_s, check=check)

    def put(self, path: str, data: bytes, mode: int) -> None:
        """Write a file; folders above it are made as needed."""
        reply = self.agent.put(path, data, mode, FILE_TIMEOUT_S)
        if reply.rc != 0:
            raise CommandFailed(f"{self.name}: put {path}: {reply.err.decode(errors='replace')}")

    def get(self, path: str) -> bytes:
        """Read a file."""
        reply = self.agent.get(path, FILE_TIMEOUT_S)
        if reply.rc != 0:
            raise CommandFailed(f"{self.name}: get {path}: {reply.err.decode(errors='replace')}")
        return reply.out

    def forward(self, guest_port: int) -> int:
        """The port of 127.0.0.1 on this host that leads to a port of the machine."""
        return dict(self.place.forwards)[guest_port]

    def link(self, up: bool) -> None:
        """Plug the cable between the machines in, or pull it out of this one."""
        with self.monitor() as opened:
            opened.execute("set_link", name="lan", up=up)
        self.link_is_up = up

    def journal(self) -> str:
        """Everything in the journal, earlier boots included."""
        return self.run("journalctl", "--no-pager", "--all", "-o", "short-precise").stdout

    def power_cut(self) -> float:
        """Kill the emulator, start it on the same disks, and wait until systemd is through."""
        begun = time.monotonic()
        self.cold_start()
        return time.monotonic() - begun

    def reboot(self) -> float:
        """Reboot in an orderly way and wait until systemd is through."""
        begun = time.monotonic()
        self.run("systemctl", "--no-block", "reboot")
        if self.emulator is not None:
            # A reboot of the guest ends the emulator.
            self.emulator.wait(BOOT_TIMEOUT_S)
        self.cold_start()
        return time.monotonic() - begun

    def cold_start(self) -> str:
        """Boot from the disks as they are, and wait until systemd is through."""
        for tries_left in reversed(range(BOOT_TRIES)):
            self.power_off()
            self.power_on()
            try:
                self.wait_for_answer(FIRST_ANSWER_S)
                break
            except Unreachable:
                # About one boot in a hundred stops before user space; emulated kernels do that.
                if not tries_left:
                    raise
                say(f"{self.name} did not boot, trying again; {self.console_tail()}")
        return self.wait_until_running()

    def console_tail(self) -> str:
        """The last lines that the kernel printed."""
        if not self.place.console.exists():
            return "it has no console"
        lines = self.place.console.read_text(errors="replace").splitlines()[-20:]
        return f"{self.name}'s console:\n" + "\n".join(lines)

    def power_off(self) -> None:
        """Kill the emulator; what the guest had not flushed is lost."""
        if self.emulator is not None:
            self.emulator.kill()
            self.emulator.wait()
            self.emulator = None
        self.agent.close()

    def power_on(self, *, snapshot: Path | None = None) -> None:
        """Start the emulator: cold, or in the state that a snapshot holds."""
        for socket in (self.place.lan, self.place.agent, self.place.monitor):
            socket.unlink(missing_ok=True)
        argv = command_line(self.hardware, self.images, self.place)
        if snapshot is not None:
            argv += ["-incoming", f"file:{snapshot}"]
        with self.place.log.open("ab") as log:
            # Its own session: an interrupt at the terminal is for the tests, not for the machine.
            self.emulator = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if not self.link_is_up:
            self.link(up=False)

    def resume(self) -> None:
        """Let a machine started from a snapshot go on, at today's time."""
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
        """Write memory and devices of a frozen machine to a file and end the emulator."""
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
        """Return as soon as the agent inside answers."""
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
        """Return when systemd has finished starting, with its word for it: running or degraded."""
        self.wait_for_answer(BOOT_TIMEOUT_S)
        command = ("systemctl", "is-system-running", "--wait")
        return self.run(*command, timeout_s=BOOT_TIMEOUT_S, check=False).stdout.strip()

    def check_emulator(self) -> None:
        """Raise if the emulator has ended by itself."""
        if self.emulator is None:
            raise Unreachable(f"{self.name}: its power is off")
        if self.emulator.poll() is not None:
            raise EmulatorError(f"{self.name}: {self.place.log.read_text(errors='replace')}")

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Talk to the emulator, as soon as it listens."""
        end = time.monotonic() + RESTORE_TIMEOUT_S
        while (connection := connect(self.place.monitor)) is None:
            self.check_emulator()
            if time.monotonic() > end:
                raise EmulatorError(f"{self.name}: no monitor")
            time.sleep(POLL_S)
        with monitor(connection) as opened:
            yield opened

    def stop(self) -> None:
        """Switch the machine off for good."""
        self.power_off()


def create_overlays(
    place: SandboxPart, bases: Mapping[str, Path], sizes: Mapping[str, str]
) -> None:
    """Make fresh overlays over the given base images, and empty disks where there is none."""
    place.folder.mkdir(parents=True)
    for name in ("root", *sizes):
        base = bases.get(name)
        if base is None:
            words = [str(place.disk(name)), sizes[name]]
        else:
            kind = "qcow2" if base.suffix == ".qcow2" else "raw"
            words = ["-b", str(base), "-F", kind, str(place.disk(name))]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words], check=True)

"""Starts the reaper process of a machine, sends it commands and receives its events."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.systemd.rootfs import MachineSpec

CHECKOUT = Path(__file__).resolve().parents[2]
CLOSE_TIMEOUT_S = 30.0


class HostError(Exception):
    """The machine did not carry out a command; the text includes its console."""


class ReaperWrapper:
    """One reaper process and the socket to it."""

    def __init__(self, spec: MachineSpec) -> None:
        self.state = Path(spec.state)
        self.console = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.reaper = subprocess.Popen(
                [sys.executable, "-s", "-S", "-m", "tests.systemd.reaper", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.console,
                stderr=self.console,
                cwd=CHECKOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C interrupts the tests only.
            )
        self.send(json.dumps(asdict(spec)))

    @property
    def root(self) -> Path:
        """The file system in the mount namespace of the reaper."""
        return Path(f"/proc/{self.reaper.pid}/root")

    def send(self, message: str) -> None:
        """Send one packet."""
        try:
            self.link.send(message.encode())
        except OSError as error:
            raise HostError(f"the reaper has exited\n{self.output()}") from error

    def expect(self, event: str, deadline: float) -> dict[str, Any]:
        """Wait for one event; any other event means that the machine died."""
        self.link.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            packet = self.link.recv(4096)
        except TimeoutError as error:
            raise HostError(f"no event {event!r} before the deadline\n{self.output()}") from error
        fields: dict[str, Any] = json.loads(packet or b"{}")
        if fields.get("event") != event:
            received = fields or "end of connection"
            raise HostError(f"expected event {event!r}, received {received}\n{self.output()}")
        return fields

    def output(self) -> str:
        """Read the output of the reaper, and of systemd before the journal started."""
        self.console.seek(0)
        return self.console.read().decode(errors="replace")

    def close(self) -> None:
        """Stop the machine and the reaper, and wait until both have exited."""
        self.link.close()
        try:
            code = self.reaper.wait(timeout=CLOSE_TIMEOUT_S)
            if code != 0:
                raise HostError(f"the reaper exited with {code}\n{self.output()}")
        finally:
            self.reaper.kill()
            self.reaper.wait()
            self.console.close()
            with contextlib.suppress(FileNotFoundError):
                self.state.rmdir()

"""The test process's end of the link to the guard."""

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

from tests.systemd.rootfs import Plan

CHECKOUT = Path(__file__).resolve().parents[2]
CLOSE_TIMEOUT_S = 30.0


class HostError(Exception):
    """The machine did not do what it was told; carries its console."""


class Keeper:
    """Starts a guard, tells it what to do, and hears what became of it."""

    def __init__(self, plan: Plan) -> None:
        self.state = Path(plan.state)
        self.console = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.guard = subprocess.Popen(
                [sys.executable, "-s", "-S", "-m", "tests.systemd.guard", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.console,
                stderr=self.console,
                cwd=CHECKOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # An interrupt from the keyboard is for the tests alone.
            )
        self.tell(json.dumps(asdict(plan)))

    @property
    def root(self) -> Path:
        """The file system as the guard sees it, with the mounts that only it has."""
        return Path(f"/proc/{self.guard.pid}/root")

    def tell(self, message: str) -> None:
        """Send one packet."""
        try:
            self.link.send(message.encode())
        except OSError as error:
            raise HostError(f"the guard is gone\n{self.said()}") from error

    def expect(self, event: str, deadline: float) -> dict[str, Any]:
        """Wait for one event; any other means that the machine died."""
        self.link.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            packet = self.link.recv(4096)
        except TimeoutError as error:
            raise HostError(f"no {event!r} in time\n{self.said()}") from error
        told: dict[str, Any] = json.loads(packet or b"{}")
        if told.get("event") != event:
            raise HostError(f"{told or 'the end'} instead of {event!r}\n{self.said()}")
        return told

    def said(self) -> str:
        """Read what systemd and the guard wrote before there was a journal."""
        self.console.seek(0)
        return self.console.read().decode(errors="replace")

    def close(self) -> None:
        """End the machine if it runs, and the guard, and wait until both are gone."""
        self.link.close()
        try:
            code = self.guard.wait(timeout=CLOSE_TIMEOUT_S)
            if code != 0:
                raise HostError(f"the guard ended with {code}\n{self.said()}")
        finally:
            self.guard.kill()
            self.guard.wait()
            self.console.close()
            with contextlib.suppress(FileNotFoundError):
                self.state.rmdir()

"""Client of the agent inside a machine: one JSON object per line over a unix socket."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.errors import Unreachable

if TYPE_CHECKING:
    from pathlib import Path

CONNECT_TIMEOUT_S = 3
# Additional time for the transfer of the answer, beyond the timeout of the command.
ANSWER_MARGIN_S = 10


@dataclass(frozen=True)
class AgentReply:
    """The answer of the agent to one request."""

    rc: int
    out: bytes
    err: bytes
    seconds: float


class Pending:
    """A request without an answer yet; it failed if `done` is set and `reply` is None."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply: AgentReply | None = None


class Agent:
    """One connection to an agent; several threads may send requests concurrently."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket: socket.socket | None = None
        self.sending = threading.Lock()
        self.pending: dict[str, Pending] = {}
        self.numbers = itertools.count(1)

    def ping(self, timeout_s: float) -> None:
        """Return once the agent answers; raise Unreachable if it does not."""
        self.call({"ping": 1}, timeout_s)

    def run(self, argv: list[str], stdin: bytes, timeout_s: float) -> AgentReply:
        """Run a command inside the machine."""
        request = {"argv": argv, "stdin": encode(stdin), "timeout": timeout_s}
        return self.call(request, timeout_s + ANSWER_MARGIN_S)

    def put(self, path: str, data: bytes, mode: int, timeout_s: float) -> AgentReply:
        """Write a file inside the machine."""
        return self.call({"put": path, "data": encode(data), "mode": mode}, timeout_s)

    def get(self, path: str, timeout_s: float) -> AgentReply:
        """Read a file of the machine."""
        return self.call({"get": path}, timeout_s)

    def call(self, request: dict[str, object], timeout_s: float) -> AgentReply:
        """Send a request and wait for its answer."""
        # The process id distinguishes answers to requests of an earlier connection.
        number = f"{os.getpid()}-{next(self.numbers)}"
        pending = Pending()
        line = json.dumps({**request, "id": number}).encode() + b"\n"
        with self.sending:
            try:
                connection = self.connected()
                self.pending[number] = pending
                connection.sendall(line)
            except OSError as error:
                self.pending.pop(number, None)
                raise Unreachable(f"{self.path}: {error}") from error
        pending.done.wait(timeout_s)
        self.pending.pop(number, None)
        if pending.reply is None:
            raise Unreachable(f"{self.path}: no answer within {timeout_s:.0f} s to {line[:200]!r}")
        return pending.reply

    def connected(self) -> socket.socket:
        """The open connection; it is opened first if there is none."""
        if self.socket is None:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(CONNECT_TIMEOUT_S)
                connection.connect(str(self.path))
                connection.settimeout(None)
            except OSError:
                connection.close()
                raise
            self.socket = connection
            threading.Thread(target=self.read, args=(connection,), daemon=True).start()
        return self.socket

    def read(self, connection: socket.socket) -> None:
        """Deliver answers until the connection ends, then wake all waiting threads."""
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                self.deliver(line)
        for pending in list(self.pending.values()):
            pending.done.set()

    def deliver(self, line: bytes) -> None:
        """Store an answer in its request."""
        try:
            fields = json.loads(line)
        except ValueError:
            # The rest of a line that was in transit when the snapshot was taken.
            return
        pending = self.pending.get(fields["id"])
        if pending is not None:
            out, err = (base64.b64decode(fields.get(name, "")) for name in ("out", "err"))
            pending.reply = AgentReply(fields["rc"], out, err, fields["seconds"])
            pending.done.set()

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        with self.sending:
            if self.socket is not None:
                with contextlib.suppress(OSError):
                    # shutdown wakes the reading thread; close alone does not.
                    self.socket.shutdown(socket.SHUT_RDWR)
                self.socket.close()
                self.socket = None


def encode(data: bytes) -> str:
    """Encode bytes as text for JSON."""
    return base64.b64encode(data).decode()

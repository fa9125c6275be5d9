"""Client of the emulator's monitor, by the QMP protocol."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from tests.lab.errors import EmulatorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 120


class Monitor:
    """One open connection to an emulator's monitor."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def execute(self, command: str, **arguments: object) -> Any:
        """Send a command and return its answer; events are ignored."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.stream.write(json.dumps({"execute": command, "arguments": named}) + "\n")
        self.stream.flush()
        for line in self.stream:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise EmulatorError(f"{command}: {answer['error']['desc']}")
        raise EmulatorError(f"{command}: the emulator has exited")


def connect(path: Path) -> socket.socket | None:
    """Connect to an emulator's monitor socket; None if it does not listen yet."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


@contextmanager
def monitor(connection: socket.socket) -> Iterator[Monitor]:
    """Negotiate over a new connection; the emulator serves one at a time."""
    with connection, connection.makefile("rw") as stream:
        stream.readline()
        opened = Monitor(stream)
        opened.execute("qmp_capabilities")
        yield opened

"""zfsilod --simulate and zfsilo-csi as processes that tests can kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[2]
HOST = "simulated"
KEPT_FACTS = ("content:", "owner:")  # those of a pool without volumes
START_S = 30
LOG_TAIL = 4000


class Process:
    """A Python module that runs until it is stopped or killed."""

    def __init__(self, log: Path, socket: Path, *words: str) -> None:
        self._log = log
        self._socket = socket
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, and wait until its socket exists."""
        self._socket.unlink(missing_ok=True)
        packages = (PROJECT, PROJECT / "proto", PROJECT / "csi")
        environment = os.environ | {"PYTHONPATH": ":".join(map(str, packages))}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=PROJECT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._socket.exists():
            log_text = self._log.read_text()[-LOG_TAIL:]
            assert self._process.poll() is None, log_text
            assert time.monotonic() < deadline, log_text
            time.sleep(0.02)  # there is no event for a socket that another process binds

    def end(self, number: int = signal.SIGTERM) -> None:
        """Stop the process by SIGTERM, or by SIGKILL together with its children."""
        if self._process is None:
            return
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        self._process.wait(START_S)
        self._process = None


class Simulation:
    """A simulated server that is its own node, and the plugin."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        etc = directory / "etc"
        etc.mkdir()
        (etc / "zfsilod.toml").write_text(
            f'[daemon]\nhost_id = "{HOST}"\n[csi]\nmax_attachments = 4\n'
        )
        config = directory / "csi.toml"
        config.write_text(
            f'endpoint = "{self.endpoint}"\n'
            f'[node]\nsocket = "{directory}/run/csi/zfsilod.sock"\n'
            f'[backends.give]\nsocket = "{directory}/run/zfsilod.sock"\nserver = "{HOST}"\n'
        )
        words = ("zfsilod.daemon", "--simulate", str(directory))
        self.daemon = Process(directory / "daemon.log", directory / "run/csi/zfsilod.sock", *words)
        self.plugin = Process(
            directory / "csi.log",
            directory / "csi.sock",
            "zfsilo_csi",
            "--config",
            str(config),
            "all",
        )

    @property
    def endpoint(self) -> str:
        return f"unix:{self.directory}/csi.sock"

    @property
    def facts(self) -> Path:
        return self.directory / "facts.json"


@contextmanager
def simulation(directory: Path) -> Iterator[Simulation]:
    """Run both processes while the context is open."""
    processes = Simulation(directory)
    try:
        processes.daemon.start()
        processes.plugin.start()
        yield processes
    finally:
        processes.plugin.end()
        processes.daemon.end()

"""Processes of the cluster: each has a log, and ends by its process id."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

START_S = 120
END_S = 30
MAX_PAUSE_S = 8.0


class ClusterProcess:
    """A program that runs until it is ended; it starts again only when a test says so."""

    def __init__(
        self,
        log: Path,
        words: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.words = [str(word) for word in words]
        self.environment = dict(environment or {})
        self._before = 0  # bytes in the log
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program; its output is appended to the log."""
        self._before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
                start_new_session=True,
            )

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal and wait; a program that ignores SIGTERM is killed."""
        if self._running is None:
            return
        running, self._running = self._running, None
        running.send_signal(number)
        try:
            running.wait(END_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait(END_S)

    def kill(self) -> None:
        """End the program as a crash does."""
        self.end(signal.SIGKILL)

    @property
    def pid(self) -> int:
        """The process id of the running program."""
        assert self._running is not None, f"{self.words[0]} does not run"
        return self._running.pid

    def wait_for(self, text: str) -> None:
        """Wait until the program has logged a text since its start."""
        deadline = time.monotonic() + START_S
        while text.encode() not in self.log.read_bytes()[self._before :]:
            self.check()
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.tail()}"
            time.sleep(0.05)  # there is no event for a line in a log

    def check(self) -> None:
        """Raise when the program has ended by itself."""
        code = self._running.poll() if self._running else None
        assert code is None, f"{self.words[0]} exited with {code}:\n{self.tail()}"

    def tail(self, characters: int = 3000) -> str:
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-characters:]


class Container(ClusterProcess):
    """A program that is started again whenever it ends, as kubelet does with a container."""

    def __init__(
        self,
        log: Path,
        words: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(log, words, environment)
        self.restarts = 0
        self._unwanted = threading.Event()
        self._keeper: threading.Thread | None = None

    def start(self) -> None:
        """Start the program, and start it again until `end`."""
        self._unwanted.clear()
        super().start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def end(self, number: int = signal.SIGTERM) -> None:
        """End the program for good."""
        self._unwanted.set()
        super().end(number)
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None

    def crash(self) -> None:
        """Kill the program; it starts again."""
        if self._running is not None:
            self._running.kill()

    def _keep(self) -> None:
        pause_s = 1.0
        while (running := self._running) is not None:
            code = running.wait()
            if self._unwanted.wait(pause_s):
                return
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            self.restarts += 1
            with self.log.open("a") as log:
                log.write(f"--- exit code {code}, restart {self.restarts}\n")
            super().start()

"""Progress of an operation: one line on the terminal, rewritten at each change."""

from __future__ import annotations

import os
import sys

from zfsilod.ctl import messages as pb
from zfsilod.ctl.output.table import clean
from zfsilod.ctl.parse import bare
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from typing import Any

    from zfsilod.ctl.client import HttpCall, Server

DELAY_S = 0.3  # shorter operations show no progress
JOIN_S = 1.0
DEFAULT_WIDTH = 80
ERASE_LINE = "\r\x1b[K"
ENDED = ("OPERATION_STATE_DONE", "OPERATION_STATE_ROLLED_BACK", "OPERATION_STATE_ABANDONED")


class NoProgress:
    """What follows an operation where nobody looks."""

    def follow(self, operation: str) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class ProgressLine:
    """Follows an operation in a thread, and draws its progress on the terminal."""

    def __init__(self, server: Server) -> None:
        import threading  # a command without a terminal has no use for it

        self._server = server
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._watch: HttpCall | None = None
        self._drawn = False

    def follow(self, operation: str) -> None:
        """Start to draw the progress of an operation, until it or the call finishes."""
        import threading

        thread = threading.Thread(target=self._run, args=(operation,), name="progress", daemon=True)
        self._thread = thread
        thread.start()

    def stop(self) -> None:
        """Stop drawing and clear the line."""
        with self._lock:
            self._over.set()
            if self._watch is not None:
                self._watch.cancel()
            if self._drawn:
                sys.stderr.write(ERASE_LINE)
                sys.stderr.flush()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def _run(self, operation: str) -> None:
        if self._over.wait(DELAY_S):
            return
        wanted = f'id = "{bare(operation, "operations")}"'
        request = pb.WatchOperationsRequest(filter=wanted)
        try:
            with self._lock:
                if self._over.is_set():
                    return
                self._watch = self._server.watch("WatchOperations", request, self._server.change_s)
            for changes in self._watch.responses():
                if self._over.is_set() or changes.operation.state in ENDED:
                    return
                self._draw(describe(changes.operation)[: _columns() - 1])
        except ZfsiloError:
            return  # the call itself reports the error

    def _draw(self, text: str) -> None:
        with self._lock:
            if not self._over.is_set():
                sys.stderr.write(f"{ERASE_LINE}{text}")
                sys.stderr.flush()
                self._drawn = True


def progress_of(server: Server, *, draw: bool) -> NoProgress | ProgressLine:
    """Return what follows an operation: a line, where standard error is a terminal."""
    return ProgressLine(server) if draw and sys.stderr.isatty() else NoProgress()


def _columns() -> int:
    """Return the width of the terminal: a longer line could not be erased."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def describe(operation: Any) -> str:
    """Return the progress line of an operation: title, percentage and current action."""
    state = operation.state.removeprefix("OPERATION_STATE_").lower()
    parts = [clean(operation.title), f"{operation.progress} %"]
    step = current_step(operation)
    if state != "running":
        parts.append("rolling back" if state == "failed" else state.replace("_", " "))
    elif step:
        parts.append(step)
    return " · ".join(parts)


def current_step(operation: Any) -> str:
    """Return the description of the action that is running or next, or ""."""
    for action in operation.actions:
        if action.status in (pb.ACTION_STATUS_STARTED, pb.ACTION_STATUS_PENDING):
            return clean(action.step)
    return ""

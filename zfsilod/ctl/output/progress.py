"""Progress of an operation: one line on the terminal, rewritten at each change."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import grpc
from zfsilo.v1.operation_pb2 import ActionStatus, OperationState, WatchOperationsRequest

from zfsilod.ctl.output.table import clean
from zfsilod.ctl.parse import bare

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.ctl.client import Server

DELAY_S = 0.3  # shorter operations show no progress
JOIN_S = 1.0
DEFAULT_WIDTH = 80
ERASE_LINE = "\r\x1b[K"
ENDED = (
    OperationState.OPERATION_STATE_DONE,
    OperationState.OPERATION_STATE_ROLLED_BACK,
    OperationState.OPERATION_STATE_ABANDONED,
)


class ProgressLine(threading.Thread):
    """A thread that follows the operation of a call and draws its progress on the terminal."""

    def __init__(self, server: Server, learn: Callable[[], str], *, draw: bool) -> None:
        """`learn` waits for the operation's name; without `draw` nothing is printed."""
        super().__init__(name="progress", daemon=True)
        self.operation = ""
        self._server = server
        self._learn = learn
        self._draws = draw and sys.stderr.isatty()
        self._over = threading.Event()
        self._watch: Any = None
        self._lock = threading.Lock()
        self._drawn = False

    def run(self) -> None:
        """Wait for the operation's name, then draw until the operation or the call finishes."""
        try:
            self.operation = self._learn()
            if not self.operation or not self._draws or self._over.wait(DELAY_S):
                return
            wanted = f'id = "{bare(self.operation, "operations")}"'
            with self._lock:
                if self._over.is_set():
                    return
                self._watch = self._server.api.operations.WatchOperations(
                    WatchOperationsRequest(filter=wanted), timeout=self._server.change_s
                )
            for changes in self._watch:
                if self._over.is_set() or changes.operation.state in ENDED:
                    return
                text = describe(changes.operation)[: _columns() - 1]
                with self._lock:
                    if not self._over.is_set():
                        sys.stderr.write(f"{ERASE_LINE}{text}")
                        sys.stderr.flush()
                        self._drawn = True
        except grpc.RpcError:
            return  # the call itself reports the error

    def stop(self) -> None:
        """Stop drawing and clear the line."""
        with self._lock:
            self._over.set()
            if self._watch is not None:
                self._watch.cancel()
            if self._drawn:
                sys.stderr.write(ERASE_LINE)
                sys.stderr.flush()
        self.join(JOIN_S)


def _columns() -> int:
    """Return the width of the terminal: a longer line could not be erased."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def describe(operation: Any) -> str:
    """Return the progress line of an operation: title, percentage and current action."""
    state = OperationState.Name(operation.state).removeprefix("OPERATION_STATE_").lower()
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
        if action.status in (
            ActionStatus.ACTION_STATUS_STARTED,
            ActionStatus.ACTION_STATUS_PENDING,
        ):
            return clean(action.step)
    return ""

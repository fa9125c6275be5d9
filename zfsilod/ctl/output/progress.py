"""The one line on a terminal that tells how far an operation is, rewritten as it changes."""

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

PATIENCE_S = 0.3  # what ends sooner needs no progress
JOIN_S = 1.0
DEFAULT_WIDTH = 80
ERASE_LINE = "\r\x1b[K"
ENDED = (
    OperationState.OPERATION_STATE_DONE,
    OperationState.OPERATION_STATE_ROLLED_BACK,
    OperationState.OPERATION_STATE_ABANDONED,
)


class Progress(threading.Thread):
    """Follows the operation of a call in the background, and draws on a terminal."""

    def __init__(self, server: Server, learn: Callable[[], str], *, draw: bool) -> None:
        """`learn` waits for the operation's name; without `draw` that is all that is done."""
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
        """Learn which operation it is; draw it until it ends or the call does."""
        try:
            self.operation = self._learn()
            if not self.operation or not self._draws or self._over.wait(PATIENCE_S):
                return
            for changes in self._changes():
                if self._over.is_set() or changes.operation.state in ENDED:
                    return
                self._draw(describe(changes.operation))
        except grpc.RpcError:
            return  # progress is a courtesy: the call itself tells what is wrong

    def stop(self) -> None:
        """End the drawing and clear the line."""
        with self._lock:
            self._over.set()
            if self._watch is not None:
                self._watch.cancel()
            if self._drawn:
                sys.stderr.write(ERASE_LINE)
                sys.stderr.flush()
        self.join(JOIN_S)

    def _changes(self) -> Any:
        wanted = f'id = "{bare(self.operation, "operations")}"'
        with self._lock:
            if self._over.is_set():
                return ()
            self._watch = self._server.api.operations.WatchOperations(
                WatchOperationsRequest(filter=wanted), timeout=self._server.change_s
            )
        return self._watch

    def _draw(self, text: str) -> None:
        with self._lock:
            if not self._over.is_set():
                sys.stderr.write(f"{ERASE_LINE}{text[: _columns() - 1]}")
                sys.stderr.flush()
                self._drawn = True


def _columns() -> int:
    """Return how many columns the terminal really has: a longer line could not be erased."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def describe(operation: Any) -> str:
    """Return a line for an operation on its way: what, how far, and which step is next."""
    state = OperationState.Name(operation.state).removeprefix("OPERATION_STATE_").lower()
    parts = [clean(operation.title), f"{operation.progress} %"]
    step = current_step(operation)
    if state != "running":
        parts.append("taking it back" if state == "failed" else state.replace("_", " "))
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

"""Threads of its own for each kind of caller, so that one kind does not wait for another's work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

THREADS = 6  # of each kind of caller

ROOM: ContextVar[str] = ContextVar("ROOM", default="daemon")
"""The kind of caller that the running task works for: set once for each call."""


class Rooms(ThreadPoolExecutor):
    """An executor with threads of its own for each value of ROOM."""

    def __init__(self, threads: int = THREADS, name: str = "room") -> None:
        super().__init__(threads, name)  # of the daemon itself
        self._most = threads
        self._name = name
        self._pools: dict[str, ThreadPoolExecutor] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in a thread of the running task's kind of caller."""
        room = ROOM.get()
        if room == "daemon":
            return super().submit(fn, *args, **kwargs)
        if room not in self._pools:
            self._pools[room] = ThreadPoolExecutor(self._most, f"{self._name} {room}")
        return self._pools[room].submit(fn, *args, **kwargs)

    def shutdown(self, *how: Any, **named: Any) -> None:
        """Shut the threads of all kinds down."""
        for pool in self._pools.values():
            pool.shutdown(*how, **named)
        super().shutdown(*how, **named)

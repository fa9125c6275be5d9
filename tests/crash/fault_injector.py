"""Fault injector: counts effects and saves as points, and kills or fails a process at some.

Every effect on the fake host and every write transaction of the store is a point. Points are
numbered for each process (daemon, run, rollback), so that two equal runs have the same numbers.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tests.worker_rig import Killed
from zfsilod.model.errors import CommandFailed, ResourceExhausted
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zfsilod.host.fake import Facts
    from zfsilod.storage.transaction import Transaction

Process = Literal["daemon", "run", "rollback"]
When = Literal["before", "after"]
How = Literal["error", "kill worker", "kill daemon", "reboot"]
STUCK_S = 20


class Fault(NamedTuple):
    """A failure, kill or reboot at the n-th point of a process."""

    process: Process
    point: int
    when: When
    how: How

    def __str__(self) -> str:
        return f"{self.how} {self.when} point {self.point} of {self.process}"


class FaultInjector:
    """The points of one run, and the faults that it meets."""

    def __init__(self) -> None:
        self.points: Counter[Process] = Counter()
        self.faults: list[Fault] = []
        self.injected: list[Fault] = []
        self.stopped: set[str] = set()  # units that systemd was asked to stop
        self.on_kill: Callable[[How], None] = lambda _how: None
        self._thread = threading.local()
        self._daemon_restarted = threading.Event()

    def set(self, *faults: Fault) -> None:
        """Count from zero, and inject these faults."""
        self.points.clear()
        self.faults, self.injected = list(faults), []
        self._daemon_restarted.clear()

    @contextmanager
    def as_worker(self, unit: str, process: Process) -> Iterator[None]:
        """Count the points of this thread as those of a worker."""
        self._thread.process, self._thread.unit = process, unit
        try:
            yield
        finally:
            self._thread.process = "daemon"
            if process == "run":
                self.stopped.discard(unit)

    @property
    def process(self) -> Process:
        """The process that this thread stands for."""
        process: Process = getattr(self._thread, "process", "daemon")
        return process

    def resume(self) -> None:
        """Let the worker continue at whose point the daemon was killed: a new daemon runs."""
        self._daemon_restarted.set()

    @contextmanager
    def point(self, kind: Literal["effect", "save"]) -> Iterator[None]:
        """Count a point around an effect or a save, and inject its faults."""
        process = self.process
        if process == "run" and self._thread.unit in self.stopped:
            raise Killed
        self.points[process] += 1
        faults = [fault for fault in self.faults if fault[:2] == (process, self.points[process])]
        for fault in faults:
            self.injected.append(fault)
            if fault.when == "before":
                self._fail(fault.how, kind)
        yield
        for fault in faults:
            if fault.when == "after":
                self._fail(fault.how, kind)

    def _fail(self, how: How, kind: str) -> None:
        if how == "error" and kind == "effect":
            raise CommandFailed("injected")
        if how == "error":
            raise ResourceExhausted("injected: the store is full")
        if how in ("kill daemon", "reboot"):
            self.on_kill(how)
        if how == "kill daemon" and self.process != "daemon":
            assert self._daemon_restarted.wait(STUCK_S), "the daemon was not restarted"
            return  # the worker is in a unit of its own and is not killed
        raise Killed

    def count_effects(self, facts: Facts) -> None:
        """Make every effect on a fake host a point."""
        effect = facts.effect

        def counted_effect(name: str, value: Any, **renamed: Any) -> None:
            with self.point("effect"):
                effect(name, value, **renamed)

        facts.effect = counted_effect  # type: ignore[method-assign]


class FaultyStore(Store):
    """The store as one process has it: each write is a point; a killed process writes no more."""

    def __init__(self, store: Store, injector: FaultInjector) -> None:
        self.__dict__.update(store.__dict__)
        self.injector = injector
        self.dead = False

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a write transaction, with a point around it."""
        if self.dead:
            raise Killed
        with self.injector.point("save"), super().write() as txn:
            yield txn

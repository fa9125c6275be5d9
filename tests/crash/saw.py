"""The saw: counts every effect and every save as it happens, and cuts at the chosen ones."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tests.machine import Killed
from zfsilod.model.errors import CommandFailed, ResourceExhausted
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zfsilod.host.fake import Facts
    from zfsilod.storage.store import Transaction

SandboxPart = Literal["daemon", "run", "rollback"]
When = Literal["before", "after"]
How = Literal["error", "kill worker", "kill daemon", "reboot"]
STUCK_S = 20


class Cut(NamedTuple):
    """What happens at the n-th point of a place."""

    place: SandboxPart
    point: int
    when: When
    how: How

    def __str__(self) -> str:
        return f"{self.how} {self.when} point {self.point} of {self.place}"


class Saw:
    """The points of one story, by where they are, and the cuts that are made in it."""

    def __init__(self) -> None:
        self.points: Counter[SandboxPart] = Counter()
        self.cuts: list[Cut] = []
        self.made: list[Cut] = []
        self.stopped: set[str] = set()  # units that systemd was asked to stop
        self.on_death: Callable[[How], None] = lambda _how: None
        self._thread = threading.local()
        self._going_on = threading.Event()

    def set(self, *cuts: Cut) -> None:
        """Begin to count anew, and cut here."""
        self.points.clear()
        self.cuts, self.made = list(cuts), []
        self._going_on.clear()

    @contextmanager
    def working(self, unit: str, place: SandboxPart) -> Iterator[None]:
        """Count what this thread does to a worker that runs or rolls back."""
        self._thread.place, self._thread.unit = place, unit
        try:
            yield
        finally:
            self._thread.place = "daemon"
            if place == "run":
                self.stopped.discard(unit)

    @property
    def place(self) -> SandboxPart:
        """Where this thread is."""
        found: SandboxPart = getattr(self._thread, "place", "daemon")
        return found

    def resume(self) -> None:
        """Let a worker go on at whose point the daemon was killed: there is a new daemon now."""
        self._going_on.set()

    @contextmanager
    def point(self, what: Literal["effect", "save"]) -> Iterator[None]:
        """Do something that can be cut before it, or after it."""
        place = self.place
        if place == "run" and self._thread.unit in self.stopped:
            raise Killed
        self.points[place] += 1
        here = [cut for cut in self.cuts if cut[:2] == (place, self.points[place])]
        for cut in here:
            self.made.append(cut)
            if cut.when == "before":
                self._fall(cut.how, what)
        yield
        for cut in here:
            if cut.when == "after":
                self._fall(cut.how, what)

    def _fall(self, how: How, what: str) -> None:
        if how == "error" and what == "effect":
            raise CommandFailed("cut")
        if how == "error":
            raise ResourceExhausted("cut: the store is full")
        if how in ("kill daemon", "reboot"):
            self.on_death(how)
        if how == "kill daemon" and self.place != "daemon":
            assert self._going_on.wait(STUCK_S), "no new daemon came"
            return  # the worker is in a unit of its own, and does not notice
        raise Killed

    def through(self, facts: Facts) -> None:
        """Count the effects on a fake host."""
        effect = facts.effect

        def sawn(name: str, value: Any, **renamed: str) -> None:
            with self.point("effect"):
                effect(name, value, **renamed)

        facts.effect = sawn  # type: ignore[method-assign]


class SawnStore(Store):
    """A store as one process sees it: its saves are points, and a dead process makes none."""

    def __init__(self, store: Store, saw: Saw) -> None:
        self.__dict__.update(store.__dict__)
        self.saw = saw
        self.dead = False

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Write in one transaction, with a point around it."""
        if self.dead:
            raise Killed
        with self.saw.point("save"), super().write() as txn:
            yield txn

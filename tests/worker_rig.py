"""A fake host with a saw: it can be cut before or after every effect and every save."""

from __future__ import annotations

import json
from typing import Any

from tests.examples import Example, chap
from zfsilod.engine import worker
from zfsilod.engine.step import HostStep
from zfsilod.host.fake import VOLATILE, FakeHost
from zfsilod.model.errors import CommandFailed, ZfsiloError
from zfsilod.model.record import from_plain, to_plain
from zfsilod.model.records import Failure, Operation


class Killed(BaseException):
    """The worker is gone, as by SIGKILL: nothing of it runs on."""


class Machine:
    """A fake host and one operation's place in the store, with numbered points to be cut at."""

    def __init__(self) -> None:
        self.host = FakeHost(chap=chap)
        self.points = 0
        self.cut_at = 0  # 0: never
        self.when = "before"
        self.how = "kill"
        self.stored = ""
        self.boot_id = "first"
        effect = self.host.facts.effect

        def cut_effect(name: str, value: Any, **renamed: str) -> None:
            cut = self._point()
            if cut and self.when == "before":
                self._fall()
            effect(name, value, **renamed)
            if cut:
                self._fall()

        self.host.facts.effect = cut_effect  # type: ignore[method-assign]

    def cut(self, point: int, when: str, how: str) -> None:
        """Cut at the n-th point from now on."""
        self.points, self.cut_at, self.when, self.how = 0, point, when, how

    def _point(self) -> bool:
        self.points += 1
        return self.points == self.cut_at

    def _fall(self) -> None:
        if self.how == "kill":
            raise Killed
        raise CommandFailed("cut")

    def save(self, operation: Operation) -> Operation:
        """Store the operation, as JSON like the real store."""
        cut = self._point()
        if cut and self.when == "before":
            raise Killed  # a save does not fail: it happens, or the process is gone
        self.stored = json.dumps(to_plain(operation))
        if cut:
            raise Killed
        return operation

    @property
    def operation(self) -> Operation:
        """Return the operation as the store has it."""
        found: Operation = from_plain(json.loads(self.stored))
        return found

    def prepare(self, example: Example) -> dict[str, Any]:
        """Make what must stand before an example, and return all facts."""
        for step in example.before:
            if isinstance(step, HostStep) and not step.probe(self.host):
                step.do(self.host)
        return self.host.facts.snapshot()

    def run(self) -> bool:
        """Run the stored operation as the worker does; tell whether it came to its end."""
        return self._attempt(lambda: worker.run(self.operation, self.host, self.save), "FAILED")

    def rollback(self) -> bool:
        """Roll the stored operation back as the worker does; tell whether it came to its end."""

        def attempt() -> Operation:
            return worker.rollback(self.operation, self.host, self.save, boot_id=self.boot_id)

        return self._attempt(attempt, "NEEDS_REPAIR")

    def _attempt(self, work: Any, state_if_failed: Any) -> bool:
        try:
            work()
        except Killed:
            return False
        except ZfsiloError as error:
            failure = Failure(name=error.name, message=error.message)
            operation = self.operation
            self.cut_at = 0
            self.save(operation.but(state=state_if_failed, failure=operation.failure or failure))
            return False
        return True

    def reboot(self) -> None:
        """Lose everything volatile, as by a power cut."""
        self.host.facts.reboot()
        self.boot_id += "'"


def lasting(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that a reboot leaves."""
    return {n: v for n, v in facts.items() if n.partition(":")[0] not in VOLATILE}


def not_sticky(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that a rollback must restore: not filesystems, nor sizes that were seen."""
    kept = {n: v for n, v in facts.items() if not n.startswith("content:")}
    return {n: (v | {"size": 0} if n.startswith("session:") else v) for n, v in kept.items()}

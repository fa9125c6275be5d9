"""Worker rig: one stored operation on a fake host, with a fault at any effect or save."""

from __future__ import annotations

import json
from typing import Any

from tests.examples import VOLUME, Example, chap
from tests.replica_stream import streams_of
from zfsilod.engine import worker
from zfsilod.engine.step import HostStep
from zfsilod.host.fake import VOLATILE, FakeHost
from zfsilod.model.errors import CommandFailed, ZfsiloError
from zfsilod.model.record import from_plain, to_plain
from zfsilod.model.records import Failure, Operation

STICKY = ("content:", "peer:", "bookmark:", "replica-")


class Killed(BaseException):
    """A process was killed as by SIGKILL; none of its error handlers may run."""


class WorkerRig:
    """A fake host and one stored operation; each effect and each save is a numbered point."""

    def __init__(self) -> None:
        self.host = FakeHost(chap=chap)
        self.host.open_stream = streams_of(self.host, VOLUME.dataset)
        self.points = 0
        self.cut_at = 0  # 0: never
        self.when = "before"
        self.how = "kill"
        self.stored = ""
        self.boot_id = "first"
        effect = self.host.facts.effect

        def faulty_effect(name: str, value: Any, **renamed: Any) -> None:
            cut = self._point()
            if cut and self.when == "before":
                self._fail()
            effect(name, value, **renamed)
            if cut:
                self._fail()

        self.host.facts.effect = faulty_effect  # type: ignore[method-assign]

    def inject(self, point: int, when: str, how: str) -> None:
        """Inject a fault at the n-th point from here on."""
        self.points, self.cut_at, self.when, self.how = 0, point, when, how

    def _point(self) -> bool:
        self.points += 1
        return self.points == self.cut_at

    def _fail(self) -> None:
        if self.how == "kill":
            raise Killed
        raise CommandFailed("injected")

    def save(self, operation: Operation) -> Operation:
        """Store the operation, as JSON like the real store."""
        cut = self._point()
        if cut and self.when == "before":
            raise Killed  # a save happens or the process is killed; it does not fail
        self.stored = json.dumps(to_plain(operation))
        if cut:
            raise Killed
        return operation

    @property
    def operation(self) -> Operation:
        """The stored operation."""
        operation: Operation = from_plain(json.loads(self.stored))
        return operation

    def prepare(self, example: Example) -> dict[str, Any]:
        """Do the steps before an example, and return all facts."""
        for step in example.before:
            if isinstance(step, HostStep) and not step.probe(self.host):
                step.do(self.host)
        return self.host.facts.snapshot()

    def run(self) -> bool:
        """Run the stored operation as the worker does; return whether it finished."""
        return self._attempt(lambda: worker.run(self.operation, self.host, self.save), "FAILED")

    def rollback(self) -> bool:
        """Roll the stored operation back as the worker does; return whether it finished."""

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
        """Remove the volatile facts, as by a power cut."""
        self.host.facts.reboot()
        self.boot_id += "'"


def lasting(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that a reboot leaves."""
    return {n: v for n, v in facts.items() if n.partition(":")[0] not in VOLATILE}


def not_sticky(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that a rollback must restore.

    Not filesystems, replicas, snapshots that are kept for a peer, epochs of zvols, and sizes and
    limits of sessions.
    """
    kept = {n: v for n, v in facts.items() if not n.startswith(STICKY)}
    kept = {n: v for n, v in kept.items() if not (n.startswith("zvol:") and "replica_sets" in v)}
    for name in [name for name in kept if name.startswith("zvol:")]:
        properties = kept[name]["properties"]
        without = {n: v for n, v in properties.items() if n != "zfsilo:epoch"}
        kept[name] = kept[name] | {"properties": without}
    learned = {"size": 0, "limited": True}
    return {n: (v | learned if n.startswith("session:") else v) for n, v in kept.items()}

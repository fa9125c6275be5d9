#!/usr/bin/python3 -IS
"""Replaces zfsilo-worker in a machine of the lab, and kills itself by SIGKILL at a chosen point.

tests/lab/kill_matrix.py installs it; it is in no package. A point is an effect that a step has just
had: one change in configfs, the end of one tool, or the end of the step's do or undo. CUT has the
number of the point at which "run" or "rollback" is killed: {"run": 3}; each is used once. COUNT has
the number of points of the run so far; kill_matrix.py removes it before the next operation.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/zfsilo")

from zfsilod.engine import worker
from zfsilod.engine.step import HostStep
from zfsilod.engine.steps import MODULES
from zfsilod.host.configfs import Configfs
from zfsilod.host.run import Runner

CUT = Path("/dev/shm/zfsilo-cut.json")  # the sandbox of each part may write there
COUNT = Path("/dev/shm/zfsilo-cut.count")


class Killer:
    """Counts the points of this process and kills it at the chosen one."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.cuts = json.loads(CUT.read_text()) if CUT.exists() else {}
        self.in_step = False
        # An operation that waits for the daemon between its steps has several workers.
        continues = mode == "run" and COUNT.exists()
        self.points = int(COUNT.read_text()) if continues else 0

    def point(self) -> None:
        """Count a point within a step; kill this process if it is the chosen one."""
        if not self.in_step:
            return
        self.points += 1
        if self.mode == "run":
            COUNT.write_text(f"{self.points}")
        if self.points == self.cuts.get(self.mode):
            CUT.write_text(
                json.dumps({mode: n for mode, n in self.cuts.items() if mode != self.mode})
            )
            os.kill(os.getpid(), signal.SIGKILL)

    def count_calls(self, kind: type, *names: str) -> None:
        """Add a point after each call of these methods."""

        def counted(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                result = method(*args, **kwargs)
                self.point()
                return result

            return call

        for name in names:
            setattr(kind, name, counted(getattr(kind, name)))

    def count_steps(self) -> None:
        """Count the points within do and undo of every step, and one at their end."""

        def counted(change: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any, **kwargs: Any) -> None:
                if self.in_step:  # do or undo of a base class
                    change(*args, **kwargs)
                    return
                self.in_step = True
                try:
                    change(*args, **kwargs)
                    self.point()
                finally:
                    self.in_step = False

            return call

        for kind in set(subclasses(HostStep)):
            for name in {"do", "undo"} & set(vars(kind)):
                setattr(kind, name, counted(vars(kind)[name]))


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    """Yield all direct and indirect subclasses."""
    for subclass in type.__subclasses__(kind):
        yield subclass
        yield from subclasses(subclass)


for module in MODULES:  # the worker would import only those that it needs
    import_module(f"zfsilod.{module}")
killer = Killer(sys.argv[1])
killer.count_calls(Configfs, "write", "make", "remove", "link", "unlink")
killer.count_calls(Runner, "__call__")
killer.count_steps()
sys.exit(worker.main())

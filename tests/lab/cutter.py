#!/usr/bin/python3 -IS
"""Stands in for zfsilo-worker in a machine of the lab, and dies by SIGKILL where it is told to.

It is put in the worker's place by tests/lab/crash.py and is in no package. CUT says at which point
of "run" or "rollback" to die: {"run": 3}; each is used up by its death. COUNT has how many points
the run came to; whoever cuts the next operation removes it. A point is an effect that a
step has just had: one change in configfs, or one tool that ended.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/zfsilo")

from zfsilod.engine import worker
from zfsilod.host.configfs import Configfs
from zfsilod.host.run import Runner

CUT = Path("/run/zfsilo-cut.json")
COUNT = Path("/run/zfsilo-cut.count")


class Saw:
    """Counts the points of this process."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.cuts = json.loads(CUT.read_text()) if CUT.exists() else {}
        self.acting = False
        # An operation that waits for the daemon between its moves has several workers.
        before = verb == "run" and COUNT.exists()
        self.points = int(COUNT.read_text()) if before else 0

    def point(self) -> None:
        """Die here, if it is the point."""
        if not self.acting:
            return
        self.points += 1
        if self.verb == "run":
            COUNT.write_text(f"{self.points}")
        if self.points == self.cuts.get(self.verb):
            CUT.write_text(json.dumps({v: n for v, n in self.cuts.items() if v != self.verb}))
            os.kill(os.getpid(), signal.SIGKILL)

    def through(self, kind: type, *names: str) -> None:
        """Make a point of each end of these methods."""
        for name in names:
            setattr(kind, name, self.sawn(getattr(kind, name)))

    def sawn(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method that ends with a point."""

        def sawn(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            self.point()
            return result

        return sawn

    def during(self, make: Callable[..., None]) -> Callable[..., None]:
        """Return what makes a move, with points in it and one at its end."""

        def make_sawn(*args: Any, **kwargs: Any) -> None:
            self.acting = True
            try:
                make(*args, **kwargs)
                self.point()
            finally:
                self.acting = False

        return make_sawn


saw = Saw(sys.argv[1])
saw.through(Configfs, "write", "make", "remove", "link", "unlink")
saw.through(Runner, "__call__")
worker.change = saw.during(worker.change)
sys.exit(worker.main())

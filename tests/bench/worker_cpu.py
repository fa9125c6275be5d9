"""CPU time of a worker's process, for one operation of each kind on a simulated host.

The worker of each operation and `python -IS -c pass` take turns, so that the load of the machine is
the same for both.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.table import Figure, at_most
from tests.examples import PLANS, chap, operation
from tests.worker_rig import WorkerRig
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 30
TIMES = 3.0  # how many times the CPU time of `python -IS -c pass` a worker may take
REQUESTS = ("create", "publish", "connect", "mount")
ROOT = Path(__file__).parents[2]
MAIN = "from zfsilod.engine.process import main; main()"


def figures() -> Iterator[Figure]:
    """Measure the worker of each request beside the bare interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        stores = {request: stored(request, Path(folder) / request) for request in REQUESTS}
        taken: dict[str, list[float]] = {name: [] for name in ("", *REQUESTS)}
        for _round in range(ROUNDS):
            taken[""].append(cpu_ms(python("pass")))
            for request, (state, operation_id) in stores.items():
                copy = shutil.copytree(state, Path(f"{state}.run"))
                taken[request].append(cpu_ms(worker(copy, operation_id)))
                shutil.rmtree(copy)
    floor = median(taken.pop(""))
    yield Figure("python -IS -c pass, CPU", f"{floor:.1f} ms p50")
    for request, times in taken.items():
        note = f" times it ({median(times):.1f} ms p50, {min(times):.1f} min)"
        yield at_most(f"worker of {request}, CPU", median(times) / floor, TIMES, "", note=note)


def stored(request: str, state: Path) -> tuple[Path, str]:
    """Store the operation of an example, with its host before it; return both."""
    example = next(example for example in PLANS if example.name == request)
    rig = WorkerRig()
    rig.prepare(example)
    state.mkdir(parents=True)
    (state / "facts.json").write_text(json.dumps(rig.host.facts.snapshot()))
    store = Store.create(state, host="simulated", size_bytes=1 << 20)
    with store.write() as txn:
        submitted = txn.add_operation(operation(example))
        for action in submitted.actions:
            for name in action.step.resources().secrets:
                txn.put_raw("secret", name, store.seal(name, chap(name)))
    store.close()
    return state, submitted.id


def python(code: str, *options: str) -> list[str]:
    """Return the command line of the interpreter as a worker has it, with our packages."""
    places = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    interpreter = os.path.realpath(sys.executable)
    return [interpreter, *options, "-IS", "-c", f"import sys; sys.path[:0] = {places}; {code}"]


def worker(state: Path, operation_id: str, *options: str, command: str = "run") -> list[str]:
    """Return the command line of the worker of an operation."""
    return [*python(MAIN, *options), "--state", str(state), command, operation_id]


def cpu_ms(argv: list[str]) -> float:
    """Return the CPU time of a process, user and system."""
    pid = os.posix_spawn(argv[0], argv, {"PATH": os.environ["PATH"]})
    _pid, status, usage = os.wait4(pid, 0)
    assert status == 0, argv
    return 1e3 * (usage.ru_utime + usage.ru_stime)

"""The programs of the benches inside the two machines of the lab."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

INSIDE = Path(__file__).with_name("inside.py")
GUEST = Path(__file__).with_name("guest.py")
PLACE = "/root"
TIMEOUT_S = 180
STARTS = 10


def prepare(pair: Pair) -> None:
    """Copy the programs into both machines."""
    for machine in (pair.give, pair.take):
        for program in (INSIDE, GUEST):
            machine.put(f"{PLACE}/{program.name}", program.read_bytes(), 0o600)


def ask(machine: Machine, *words: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Run the client of the machine's zfsilod: inside.py."""
    return _run(machine, INSIDE, words, timeout_s)


def look(machine: Machine, *words: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Run the program that looks at the machine without libraries: guest.py."""
    return _run(machine, GUEST, words, timeout_s)


def _run(machine: Machine, program: Path, words: tuple[str, ...], timeout_s: float) -> Any:
    argv = ("python3", "-I", f"{PLACE}/{program.name}", *words)
    return json.loads(machine.run(*argv, timeout_s=timeout_s).stdout)


def starting(machine: Machine) -> float:
    """Return the seconds that Python takes to start on a machine."""
    times: list[float] = look(machine, "python", str(STARTS), "-I", "-S", "-c", "pass")
    return median(times)

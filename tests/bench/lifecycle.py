"""Lifecycle of a volume in the lab, beside shell scripts that use the same tools."""

from __future__ import annotations

import json
from operator import itemgetter
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from tests.bench.scripts import script
from tests.bench.table import Figure, at_most
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

INSIDE = Path(__file__).with_name("inside.py")
PLACE = "/root/inside.py"
TIMEOUT_S = 180
ROUNDS = 3
STARTS = 10
OVERHEAD = 3  # in starts of Python
KINDS = ("zfsilo", "configfs", "targetcli")
PHASES = (
    ("give", ("create", "publish")),
    ("take", ("connect", "stage", "mount", "unmount", "unstage", "disconnect")),
    ("give", ("unpublish", "delete")),
)
REQUESTS = tuple(request for _machine, requests in PHASES for request in requests)


def figures() -> Iterator[Figure]:
    """Run the lifecycle of each kind in turn; the first round only warms up."""
    lives: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with restore_pair(ready()) as pair:
        for machine in (pair.give, pair.take):
            machine.put(PLACE, INSIDE.read_bytes(), 0o600)
        for number in range(ROUNDS + 1):
            for kind in KINDS:
                life = live(pair, kind)
                if number:
                    lives[kind].append(life)
        starts = [starting(machine) for machine in (pair.give, pair.take)]
    start = mean(starts)
    yield Figure("python3 -I -S -c pass in the guests", f"p50 {1e3 * start:.0f} ms")
    for request in REQUESTS:
        yield Figure(f"lifecycle, {request}", shown(lives, itemgetter(request)))
    yield Figure("lifecycle, all", shown(lives, total))
    yield at_most("lifecycle to the targetcli script", ratio(lives, "targetcli"), 1, " times")
    yield Figure("lifecycle to the configfs script", f"{ratio(lives, 'configfs'):.2f} times")
    beyond = median(
        (total(ours) - total(theirs)) / len(REQUESTS)
        for ours, theirs in zip(lives["zfsilo"], lives["configfs"], strict=True)
    )
    note = f" of Python ({1e3 * beyond:.0f} ms)"
    name = "overhead per operation over configfs"
    yield at_most(name, beyond / start, OVERHEAD, " starts", note=note)


def live(pair: Pair, kind: str) -> dict[str, float]:
    """Run one lifecycle, and return the seconds of each request."""
    taken: dict[str, float] = {}
    for name, requests in PHASES:
        machine = pair.give if name == "give" else pair.take
        taken |= (
            ask(machine, "lifecycle", *requests)
            if kind == "zfsilo"
            else scripted(machine, kind, requests)
        )
    return taken


def scripted(machine: Machine, kind: str, requests: tuple[str, ...]) -> dict[str, float]:
    """Run the requests of a script on its machine, and return the seconds of each."""
    text = script(kind, machine.name, requests)
    lines = machine.run("bash", "-c", text, timeout_s=TIMEOUT_S).stdout.splitlines()
    return {request.rstrip("_"): int(took) / 1e6 for request, took in map(str.split, lines)}


def starting(machine: Machine) -> float:
    """Return the seconds that Python takes to start on a machine."""
    times: list[float] = ask(machine, "python", str(STARTS), "-I", "-S", "-c", "pass")
    return median(times)


def ask(machine: Machine, *words: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Run the client in a machine."""
    return json.loads(machine.run("python3", "-I", PLACE, *words, timeout_s=timeout_s).stdout)


def total(life: dict[str, float]) -> float:
    """Return the seconds of a whole lifecycle."""
    return sum(life.values())


def shown(lives: dict[str, list[dict[str, float]]], part: Any) -> str:
    """Return the medians of a part of the lifecycle for each kind, in ms."""
    medians = (f"{kind} {1e3 * median(map(part, lives[kind])):.0f}" for kind in KINDS)
    return ", ".join(medians) + " ms"


def ratio(lives: dict[str, list[dict[str, float]]], other: str) -> float:
    """Return the median over the rounds of the ratio of our totals to those of another."""
    pairs = zip(lives["zfsilo"], lives[other], strict=True)
    return median(total(ours) / total(theirs) for ours, theirs in pairs)

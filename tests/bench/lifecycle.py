"""Lifecycle of a volume in the lab, beside shell scripts that use the same tools."""

from __future__ import annotations

import json
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
ROUNDS = 2
STARTS = 10
OVERHEAD = 3  # in starts of Python
KINDS = ("zfsilo", "attached", "configfs", "targetcli")  # attached: by AttachVolume, DetachVolume
PHASES = (
    ("give", ("create", "publish")),
    ("take", ("connect", "stage", "mount", "unmount", "unstage", "disconnect")),
    ("give", ("unpublish", "delete")),
)
REQUESTS = tuple(request for _machine, requests in PHASES for request in requests)
CLIMBS = {"take": ("attach", "detach")}


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
    for request in (*REQUESTS, *CLIMBS["take"]):
        yield Figure(f"lifecycle, {request}", shown(lives, request))
    yield Figure("lifecycle, all", shown(lives))
    for ours, theirs, limit in (
        ("attached", "configfs", 1.3),
        ("attached", "targetcli", 0.8),
        ("zfsilo", "configfs", 2),
        ("zfsilo", "targetcli", 1),
    ):
        name = "life by AttachVolume" if ours == "attached" else "life by single requests"
        yield at_most(f"{name} to the {theirs} script", ratio(lives, ours, theirs), limit, " times")
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
        if kind == "attached":
            taken |= ask(machine, "lifecycle", *CLIMBS.get(name, requests))
        elif kind == "zfsilo":
            taken |= ask(machine, "lifecycle", *requests)
        else:
            taken |= scripted(machine, kind, requests)
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


def shown(lives: dict[str, list[dict[str, float]]], request: str = "") -> str:
    """Return the medians of a request in ms, or of all, for each kind that makes it."""
    times = {
        kind: [life[request] if request else total(life) for life in lives[kind]]
        for kind in KINDS
        if not request or request in lives[kind][0]
    }
    return ", ".join(f"{kind} {1e3 * median(taken):.0f}" for kind, taken in times.items()) + " ms"


def ratio(lives: dict[str, list[dict[str, float]]], kind: str, other: str) -> float:
    """Return the median over the rounds of the ratio of the totals of two kinds."""
    pairs = zip(lives[kind], lives[other], strict=True)
    return median(total(ours) / total(theirs) for ours, theirs in pairs)

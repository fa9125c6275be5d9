"""Lifecycle of a volume in the lab, beside shell scripts that use the same tools."""

from __future__ import annotations

from statistics import mean, median
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.machines import TIMEOUT_S, ask, prepare, starting
from tests.bench.rounds import rounds
from tests.bench.scripts import script
from tests.bench.table import Figure, at_most
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

    Life = dict[str, float]
    Lives = dict[str, list[Life]]

ROUNDS, SHARE_S = 2, 260
OVERHEAD = 3  # in starts of Python
PHASES = (
    ("give", ("create", "publish")),
    ("take", ("connect", "stage", "mount", "unmount", "unstage", "disconnect")),
    ("give", ("unpublish", "delete")),
)
REQUESTS = tuple(request for _machine, requests in PHASES for request in requests)
CLIMBS = {"take": ("attach", "detach")}


class Kind(NamedTuple):
    """One way through a life: by zfsilo over a transport, or by a script."""

    transport: str = ""  # "": by the script of that name
    climbs: bool = False  # by AttachVolume and DetachVolume


KINDS = {
    "zfsilo": Kind("iscsi"),
    "attached": Kind("iscsi", climbs=True),
    "configfs": Kind(),
    "targetcli": Kind(),
    "attached over nvme": Kind("nvme", climbs=True),
    "nvmet": Kind(),
}
# What is compared: name, life, life beside it, target.
RATIOS = (
    ("life by AttachVolume to the configfs script", "attached", "configfs", 1.3),
    ("life by AttachVolume to the targetcli script", "attached", "targetcli", 0.8),
    ("life by single requests to the configfs script", "zfsilo", "configfs", 2),
    ("life by single requests to the targetcli script", "zfsilo", "targetcli", 1),
    ("life over NVMe/TCP by AttachVolume to its script", "attached over nvme", "nvmet", 1.3),
)


def figures() -> Iterator[Figure]:
    """Run the lifecycle of each kind in turn."""
    lives: Lives = {kind: [] for kind in KINDS}
    with restore_pair(ready()) as pair:
        prepare(pair)
        warm_up(pair)
        for _round in rounds(ROUNDS, SHARE_S):
            for kind in KINDS:
                lives[kind].append(live(pair, kind))
        starts = [starting(machine) for machine in (pair.give, pair.take)]
    start = mean(starts)
    name = f"python3 -I -S -c pass in the guests, beside {len(lives['zfsilo'])} lives of each kind"
    yield Figure(name, f"p50 {1e3 * start:.0f} ms")
    for request in (*REQUESTS, *CLIMBS["take"]):
        yield Figure(f"lifecycle, {request}", shown(lives, request))
    yield Figure("lifecycle, all", shown(lives))
    for name, ours, theirs, limit in RATIOS:
        ratios = ratios_of(lives, ours, theirs)
        note = f" ({min(ratios):.2f} to {max(ratios):.2f})"
        yield at_most(name, median(ratios), limit, " times", note=note)
    beyond = median(
        (total(ours) - total(theirs)) / len(REQUESTS)
        for ours, theirs in zip(lives["zfsilo"], lives["configfs"], strict=True)
    )
    note = f" of Python ({1e3 * beyond:.0f} ms)"
    name = "overhead per operation over configfs"
    yield at_most(name, beyond / start, OVERHEAD, " starts", note=note)


def warm_up(pair: Pair) -> None:
    """Read into the page caches what the lives need: programs, libraries, modules."""
    pair.give.sh("targetcli ls >/dev/null 2>&1")
    for kind in ("attached over nvme", "configfs"):
        live(pair, kind)


def live(pair: Pair, kind: str) -> Life:
    """Run one lifecycle, and return the seconds of each request."""
    taken: Life = {}
    transport, climbs = KINDS[kind]
    for name, requests in PHASES:
        machine = pair.give if name == "give" else pair.take
        if transport:
            wanted = CLIMBS.get(name, requests) if climbs else requests
            taken |= ask(machine, "lifecycle", transport, *wanted)
        else:
            taken |= scripted(machine, kind, requests)
    return taken


def scripted(machine: Machine, kind: str, requests: tuple[str, ...]) -> Life:
    """Run the requests of a script on its machine, and return the seconds of each."""
    text = script(kind, machine.name, requests)
    lines = machine.run("bash", "-c", text, timeout_s=TIMEOUT_S).stdout.splitlines()
    return {request.rstrip("_"): int(took) / 1e6 for request, took in map(str.split, lines)}


def total(life: Life) -> float:
    """Return the seconds of a whole lifecycle."""
    return sum(life.values())


def shown(lives: Lives, request: str = "") -> str:
    """Return the medians of a request in ms, or of all, for each kind that makes it."""
    times = {
        kind: [life[request] if request else total(life) for life in lives[kind]]
        for kind in KINDS
        if not request or request in lives[kind][0]
    }
    return ", ".join(f"{kind} {1e3 * median(taken):.0f}" for kind, taken in times.items()) + " ms"


def ratios_of(lives: Lives, kind: str, other: str) -> list[float]:
    """Return the ratio of the totals of two kinds in each round."""
    pairs = zip(lives[kind], lives[other], strict=True)
    return [total(ours) / total(theirs) for ours, theirs in pairs]

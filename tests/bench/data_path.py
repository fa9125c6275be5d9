"""fio on a volume of zfsilo and on a bare target with the same settings, for each transport.

No process of zfsilo is in the path of the data: kernel and ZFS do all of it. So the daemons are
stopped while fio runs, and all settings of target, session, disk and zvol are compared. The speed
alone shows less: of an emulated machine it varies by more than the target.
"""

from __future__ import annotations

import json
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench import nvme_script, scripts
from tests.bench.lifecycle import scripted
from tests.bench.machines import ask, look, prepare
from tests.bench.rounds import rounds
from tests.bench.settings import differences, identities
from tests.bench.table import Figure, counted, within
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

    Rates = dict[str, list[float]]  # of each load, in the order of TURNS

ROUNDS, SHARE_S = 3, 210
RUN_S = 2
SHARE = 0.03  # how far apart they may be
SIZE = "32M"
COMMON = (
    *("--direct=1", "--ioengine=libaio", "--iodepth=8", f"--size={SIZE}", "--time_based"),
    f"--runtime={RUN_S}",
)
LOADS = {
    "sequential write": ("--rw=write", "--bs=128k"),
    "sequential read": ("--rw=read", "--bs=128k"),
    "random write": ("--rw=randwrite", "--bs=4k"),
    "random read": ("--rw=randread", "--bs=4k"),
}
FILL = ("--name=fill", "--rw=write", "--bs=1M", "--direct=1", f"--size={SIZE}")
TURNS = ("ours", "bare", "bare", "ours")
FIO_S = 240


class Bare(NamedTuple):
    """The target of a script: see scripts.py."""

    script: str
    target: str


BARE = {
    "iscsi": Bare("configfs", scripts.IQN),
    "nvme": Bare("nvmet", nvme_script.NQN),
}


class Both(NamedTuple):
    """The names of both targets of a transport, of their disks on take, and of their zvols."""

    targets: dict[str, str]
    disks: dict[str, str]
    zvols: dict[str, str]


def figures() -> Iterator[Figure]:
    """Connect a volume and a bare target by each transport; run fio in turns."""
    with restore_pair(ready()) as pair:
        prepare(pair)
        both = {transport: connected(pair, transport) for transport in BARE}
        running = [line for lines in pair.both(without_daemon) for line in lines]
        rates: dict[str, Rates] = {transport: {load: [] for load in LOADS} for transport in BARE}
        for one in both.values():
            for disk in one.disks.values():
                fio(pair.take, disk, *FILL)
        for _round in rounds(ROUNDS, SHARE_S):
            for transport, one in both.items():
                for turn in TURNS:
                    for load, rate in measured(pair.take, one.disks[turn]).items():
                        rates[transport][load].append(rate)
        yield from counted("processes of zfsilo while fio ran, on both machines", running)
        for transport, one in both.items():
            yield from compared(pair, transport, one)
    for transport, of_loads in rates.items():
        for load, values in of_loads.items():
            yield compare(f"fio, {load} over {transport}, to a bare target", values)


def connected(pair: Pair, transport: str) -> Both:
    """Connect take to a volume and to a bare target."""
    give, take = pair.give, pair.take
    bare = BARE[transport]
    ask(give, "lifecycle", transport, "create", "publish")
    ask(take, "lifecycle", transport, "connect")
    scripted(give, bare.script, ("create", "publish"))
    scripted(take, bare.script, ("connect",))
    disks: dict[str, str] = look(take, "disks", transport)
    [target] = set(disks) - {bare.target}
    return Both(
        targets={"ours": target, "bare": bare.target},
        disks={"ours": disks[target], "bare": disks[bare.target]},
        zvols={"ours": f"tank/zfsilo/bench-{transport}", "bare": scripts.DATASETS[transport]},
    )


def without_daemon(machine: Machine) -> list[str]:
    """Stop the daemon of a machine, and return the processes of zfsilo that are left."""
    machine.run("systemctl", "stop", "zfsilod*", timeout_s=FIO_S)
    left = machine.run("pgrep", "-af", "zfsilo", check=False).stdout
    return [f"{machine.name}: {line}" for line in left.splitlines()]


# The speed


def measured(take: Machine, disk: str) -> dict[str, float]:
    """Return the requests a second of each load."""
    jobs = (word for name, load in LOADS.items() for word in (f"--name={name}", *load))
    report = fio(take, disk, *COMMON, "--stonewall", *jobs)
    done = {job["jobname"]: job["read"]["iops"] + job["write"]["iops"] for job in report}
    assert set(done) == set(LOADS)
    return done


def fio(take: Machine, disk: str, *words: str) -> Any:
    """Run fio on a disk, and return its report on each job."""
    argv = ("fio", f"--filename=/dev/{disk}", "--output-format=json", *words)
    output = take.run(*argv, timeout_s=FIO_S).stdout
    return json.loads(output[output.index("{") :])["jobs"]  # warnings may come first


def compare(name: str, values: list[float]) -> Figure:
    """Return the ratio of ours to the bare one, with its spread and that of one beside itself."""
    ratios, same = ratios_of(values)
    note = (
        f" ({min(ratios):.2f} to {max(ratios):.2f}; one beside itself "
        f"{min(same):.2f} to {max(same):.2f}; {median(values):.0f} requests a second)"
    )
    return within(name, median(ratios), SHARE, note=note)


def ratios_of(values: list[float]) -> tuple[list[float], list[float]]:
    """Return the ratios of neighbours in the rounds: ours to bare, and of one to itself."""
    ratios: list[float] = []
    same: list[float] = []
    for start in range(0, len(values), len(TURNS)):
        first, bare, again, last = values[start : start + len(TURNS)]
        ratios += [first / bare, last / again]
        same += [again / bare, last / first]
    return ratios, same


# The settings


def compared(pair: Pair, transport: str, both: Both) -> Iterator[Figure]:
    """Yield the settings of both that differ, and those of which that is expected."""
    give, take = pair.give, pair.take
    ours, bare = (
        look(give, "served", both.targets[one])
        | look(take, "used", both.targets[one])
        | zvol(give, both.zvols[one])
        for one in ("ours", "bare")
    )
    name = f"settings over {transport} that differ from those of the bare target, of {len(ours)}"
    yield from counted(name, differences(ours, bare))
    name = "names, identities and counters that differ, as they may"
    yield from counted(name, identities(ours, bare), strict=False)


def zvol(give: Machine, dataset: str) -> dict[str, str]:
    """Return the properties of a zvol."""
    lines = give.run("zfs", "get", "-H", "-p", "-o", "property,value", "all", dataset).stdout
    pairs = (line.partition("\t") for line in lines.splitlines())
    return {f"zvol/{key}": value for key, _tab, value in pairs}

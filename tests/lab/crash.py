"""The lab's part of the crash tests: real tools and kernels, killed workers.

Each verb runs once uncut, which counts the effects that it has; then its worker is killed after
each of them (cutter.py), and the machine is compared with what it was before.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.lab import oracle
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from tests.crash.report import Report, Size
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

CUTTER = Path(__file__).with_name("cutter.py")
WORKER = "/usr/lib/zfsilo/zfsilo-worker"
CUT, COUNT = "/run/zfsilo-cut.json", "/run/zfsilo-cut.count"
STEP_S = 240
STEP_MIB = 16  # by which a volume grows
ROLLBACKS = {"short": 0, "full": 12, "long": 60}  # that are cut too
# What there is, in more words than collect.py has: kernel objects, sizes, files of the initiator.
STATE = """
cd /sys/kernel/config/target 2>/dev/null || cd /
find iscsi/iqn.* core/iblock*/* -type d -o -type l 2>/dev/null || true
cat /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/enable 2>/dev/null || true
test ! -e /dev/zfs || zfs list -H -p -t volume -o name,volsize,guid
find /etc/iscsi/nodes /var/lib/zfsilo/staging /srv -mindepth 1 2>/dev/null || true
"""


class Case(NamedTuple):
    """A verb of zfsiloctl on one machine, and the one that takes it back."""

    verb: str
    machine: str
    words: tuple[str, ...]
    back: tuple[str, ...]
    once: bool = False  # it does not go back by a rollback: it is done, and begun anew


# In the order of a life: what each leaves, the next one builds upon.
CLIMB = (
    Case("create", "give", ("create", "cut", "64M", "--host", "take"), ("delete", "cut", "--yes")),
    Case("publish", "give", ("publish", "cut", "take"), ("unpublish", "cut", "--all")),
    Case(
        "connect", "take", ("connect", "cut", "--server", "give", "--no-publish"),
        ("disconnect", "cut"),
    ),
    Case("stage", "take", ("stage", "cut", "--fs-type", "ext4"), ("unstage", "cut")),
    Case("mount", "take", ("mount", "cut", "/srv/cut"), ("unmount", "cut", "/srv/cut")),
)  # fmt: skip


class Cutter:
    """The two machines with a worker that dies where it is told to."""

    def __init__(self, pair: Pair, report: Report, dice: random.Random) -> None:
        self.pair = pair
        self.report = report
        self.dice = dice
        for machine in (pair.give, pair.take):
            machine.put(WORKER, CUTTER.read_bytes(), 0o755)

    def machine(self, case: Case) -> Machine:
        """Return the machine of a case."""
        return self.pair.give if case.machine == "give" else self.pair.take

    def ask(self, case: Case, words: tuple[str, ...], **cuts: int) -> bool:
        """Carry words out with cuts; tell whether they came to their end."""
        machine = self.machine(case)
        prepare = f"rm -f {COUNT}; cat > {CUT}"
        machine.run("sh", "-euc", prepare, input=json.dumps(cuts))
        done = machine.run("zfsiloctl", "volume", *words, timeout_s=STEP_S, check=not cuts)
        return done.rc == 0

    def count(self, case: Case, words: tuple[str, ...]) -> int:
        """Carry words out, and return how many points the worker had."""
        self.ask(case, words)
        return int(self.machine(case).sh(f"cat {COUNT} 2>/dev/null || echo 0").stdout)

    def state(self, case: Case) -> set[str]:
        """Return what is on the machine of a case, as lines."""
        machine = self.machine(case)
        found = oracle.facts(machine)
        lines = {f"{kind} {name}" for kind in found for name in self._names(found[kind])}
        return lines | set(machine.sh(STATE, timeout_s=STEP_S).stdout.splitlines())

    def _names(self, found: object) -> list[str]:
        return [str(each) for each in found] if isinstance(found, list) else []

    def live(self) -> list[str]:
        """Return the operations that have not ended, on both machines."""
        found = []
        for machine in (self.pair.give, self.pair.take):
            shown = machine.run("zfsiloctl", "operation", "list", "--json", timeout_s=STEP_S).stdout
            found += [
                f"{machine.name}: {each['name']} is {each['state']}"
                for each in json.loads(shown)["operations"]
                if not each.get("end_time")
            ]
        return found

    def walk(self, case: Case, rollbacks: int) -> None:
        """Kill the worker after each effect; at some of them the rollback's too."""
        before = self.state(case)
        points = self.count(case, case.words)
        self.ask(case, case.back)
        self.report.say(f"{case.verb}: {points} points on the real {case.machine}")
        for point in range(1, points + 1):
            self._cut(case, "lab: kill worker", before, run=point)
        for _time in range(rollbacks):
            run = self.dice.randint(max(1, points - 3), points)
            back = self.dice.randint(1, points)
            self._cut(case, "lab: kill rollback", before, run=run, rollback=back)

    def _cut(self, case: Case, kind: str, before: set[str], **cuts: int) -> None:
        if self.ask(case, case.words, **cuts):
            problem = "; ".join(oracle.leaks(self.pair))
            self.ask(case, case.back)
        else:
            wrong = before ^ self.state(case)
            problem = f"taken back, but {sorted(wrong)}" if wrong else ""
        self.report.case(case.verb, kind, problem and f"{cuts}: {problem}")

    def walk_final(self, case: Case, again: tuple[str, ...]) -> None:
        """Kill the worker after each effect of what is finished all the same."""
        points = self.count(case, case.words)
        self.report.say(f"{case.verb}: {points} points on the real {case.machine}")
        for point in range(1, points + 1):
            self.ask(case, again)
            done = self.ask(case, case.words, run=point)
            leaks = oracle.leaks(self.pair)
            if not done:
                leaks.append("it was not finished")
                self.ask(case, case.words)
            self.report.case(case.verb, "lab: kill worker", "; ".join(leaks))

    def grow(self) -> None:
        """Grow while mounted, on both sides, each time to a size of its own."""
        size = 64
        for index, verb in enumerate(("update", "grow")):
            counted = self._grow(size := size + STEP_MIB)[index]
            self.report.say(f"{verb}: {counted} points on the real machine")
            for point in range(1, counted + 1):
                size += STEP_MIB
                self._grow(size, **{verb: point})
                self._grow(size)
                self.report.case(verb, "lab: kill worker", self._size(size))

    def _grow(self, mib: int, **points: int) -> list[int]:
        """Grow the zvol, then what the consumer sees; return the points of each that is not cut."""
        counted = []
        for case in (
            Case("update", "give", ("resize", "cut", f"{mib}M"), ()),
            Case("grow", "take", ("grow", "cut"), ()),
        ):
            if case.verb in points:
                self.ask(case, case.words, run=points[case.verb])
            else:
                counted.append(self.count(case, case.words))
        return counted

    def _size(self, mib: int) -> str:
        """Return what is wrong with the size of the mounted filesystem after all ("": nothing)."""
        shown = self.pair.take.sh("df -B1M --output=size /srv/cut | tail -1").stdout
        return "" if int(shown) > 0.8 * mib else f"{shown.strip()} MiB of {mib}"


def walk_all(pair: Pair, report: Report, dice: random.Random, rollbacks: int) -> None:
    """Walk up the ladder, every verb cut everywhere, and down again."""
    cutter = Cutter(pair, report, dice)
    for case in CLIMB:
        cutter.walk(case, rollbacks // len(CLIMB))
        cutter.ask(case, case.words)
    cutter.grow()
    for case in reversed(CLIMB[1:]):
        cutter.ask(case, case.back)
    create = CLIMB[0]
    cutter.walk_final(create._replace(verb="delete", words=create.back), create.words)
    report.case("all", "lab: leaks", "; ".join([*oracle.leaks(pair), *cutter.live()]))


def run(report: Report, *, size: Size, seed: int) -> None:
    """Kill the worker at every point of the real tools."""
    dice = random.Random(seed)
    with restore_pair(ready()) as pair:
        walk_all(pair, report, dice, ROLLBACKS[size])

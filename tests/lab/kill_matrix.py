"""Crash tests with real tools and kernels: the worker is killed at every point.

Each command runs once without a kill, which counts the points of its worker; then it runs once per
point, and the worker is killed there (killer.py). Afterwards the machine must be in its old state.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.lab import leak_check
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from tests.crash.report import CrashReport, Size
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

KILLER = Path(__file__).with_name("killer.py")
WORKER = "/usr/lib/zfsilo/zfsilo-worker"
CUT, COUNT = "/dev/shm/zfsilo-cut.json", "/dev/shm/zfsilo-cut.count"
STEP_S = 240
STEP_MIB = 16  # growth of a volume
ROLLBACKS = {"short": 0, "full": 12, "long": 60}  # rollbacks that are killed, too
# More details than collect.py has: kernel objects, sizes, files of the initiator.
STATE = """
cd /sys/kernel/config/target 2>/dev/null || cd /
find iscsi/iqn.* core/iblock*/* -type d -o -type l 2>/dev/null || true
cat /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/enable 2>/dev/null || true
test ! -e /dev/zfs || zfs list -H -p -t volume -o name,volsize,guid
find /etc/iscsi/nodes /var/lib/zfsilo/staging /srv -mindepth 1 2>/dev/null || true
"""


class KillCase(NamedTuple):
    """A command of zfsiloctl on one machine, and the command that reverts it."""

    name: str
    machine: str
    words: tuple[str, ...]
    back: tuple[str, ...]


# In the order of a volume's life: each needs the result of the one before.
ATTACH_PATH = (
    KillCase(
        name="create",
        machine="give",
        words=("create", "cut", "64M", "--host", "take"),
        back=("delete", "cut", "--yes"),
    ),
    KillCase(
        name="publish",
        machine="give",
        words=("publish", "cut", "take"),
        back=("unpublish", "cut", "--all"),
    ),
    KillCase(
        name="connect",
        machine="take",
        words=("connect", "cut", "--server", "give", "--no-publish"),
        back=("disconnect", "cut"),
    ),
    KillCase(
        name="stage",
        machine="take",
        words=("stage", "cut", "--fs-type", "ext4"),
        back=("unstage", "cut"),
    ),
    KillCase(
        name="mount",
        machine="take",
        words=("mount", "cut", "/srv/cut"),
        back=("unmount", "cut", "/srv/cut"),
    ),
)


class KillMatrix:
    """The two machines with a worker that kills itself at a chosen point."""

    def __init__(self, pair: Pair, report: CrashReport, dice: random.Random) -> None:
        self.pair = pair
        self.report = report
        self.dice = dice
        for machine in (pair.give, pair.take):
            machine.put(WORKER, KILLER.read_bytes(), 0o755)

    def machine(self, case: KillCase) -> Machine:
        """Return the machine of a case."""
        return self.pair.give if case.machine == "give" else self.pair.take

    def run(self, case: KillCase, words: tuple[str, ...], **cuts: int) -> bool:
        """Run a command with the points to kill at; return whether it succeeded."""
        machine = self.machine(case)
        prepare = f"rm -f {COUNT}; cat > {CUT}"
        machine.run("sh", "-euc", prepare, input=json.dumps(cuts))
        done = machine.run("zfsiloctl", "volume", *words, timeout_s=STEP_S, check=not cuts)
        return done.rc == 0

    def count(self, case: KillCase, words: tuple[str, ...]) -> int:
        """Run a command without a kill and return the number of points of its worker."""
        self.run(case, words)
        return int(self.machine(case).sh(f"cat {COUNT} 2>/dev/null || echo 0").stdout)

    def state(self, case: KillCase) -> set[str]:
        """Return the state of the machine of a case, as lines."""
        machine = self.machine(case)
        facts = leak_check.facts(machine)
        listed = {kind: names for kind, names in facts.items() if isinstance(names, list)}
        lines = {f"{kind} {name}" for kind, names in listed.items() for name in names}
        return lines | set(machine.sh(STATE, timeout_s=STEP_S).stdout.splitlines())

    def live(self) -> list[str]:
        """Return the operations without an end, on both machines."""
        live = []
        for machine in (self.pair.give, self.pair.take):
            shown = machine.run("zfsiloctl", "operation", "list", "--json", timeout_s=STEP_S).stdout
            live += [
                f"{machine.name}: {operation['name']} is {operation['state']}"
                for operation in json.loads(shown)["operations"]
                if not operation.get("end_time")
            ]
        return live

    def kill_at_each_point(self, case: KillCase, rollbacks: int) -> None:
        """Kill the worker at each point; at some random points its rollback, too."""
        before = self.state(case)
        points = self.count(case, case.words)
        self.run(case, case.back)
        self.report.say(f"{case.name}: {points} points on the real {case.machine}")
        for point in range(1, points + 1):
            self._kill(case, "lab: kill worker", before, run=point)
        for _ in range(rollbacks):
            run = self.dice.randint(max(1, points - 3), points)
            back = self.dice.randint(1, points)
            self._kill(case, "lab: kill rollback", before, run=run, rollback=back)

    def _kill(self, case: KillCase, kind: str, before: set[str], **cuts: int) -> None:
        if self.run(case, case.words, **cuts):
            problem = "; ".join(leak_check.leaks(self.pair))
            self.run(case, case.back)
        else:
            different = before ^ self.state(case)
            problem = f"rolled back, but {sorted(different)}" if different else ""
        self.report.case(case.name, kind, problem and f"{cuts}: {problem}")

    def kill_final(self, case: KillCase, again: tuple[str, ...]) -> None:
        """Kill the worker at each point of an operation that must be completed nevertheless."""
        points = self.count(case, case.words)
        self.report.say(f"{case.name}: {points} points on the real {case.machine}")
        for point in range(1, points + 1):
            self.run(case, again)
            done = self.run(case, case.words, run=point)
            leaks = leak_check.leaks(self.pair)
            if not done:
                leaks.append("not completed")
                self.run(case, case.words)
            self.report.case(case.name, "lab: kill worker", "; ".join(leaks))

    def grow(self) -> None:
        """Kill the worker at each point of growing a mounted volume, on both machines."""
        size = 64
        for index, name in enumerate(("update", "grow")):
            points = self._grow(size := size + STEP_MIB)[index]
            self.report.say(f"{name}: {points} points on the real machine")
            for point in range(1, points + 1):
                size += STEP_MIB
                self._grow(size, **{name: point})
                self._grow(size)
                self.report.case(name, "lab: kill worker", self._size(size))

    def _grow(self, mib: int, **points: int) -> list[int]:
        """Grow the zvol, then the client's disk and filesystem; return the points of both."""
        counts = []
        for case in (
            KillCase("update", "give", ("resize", "cut", f"{mib}M"), ()),
            KillCase("grow", "take", ("grow", "cut"), ()),
        ):
            if case.name in points:
                self.run(case, case.words, run=points[case.name])
            else:
                counts.append(self.count(case, case.words))
        return counts

    def _size(self, mib: int) -> str:
        """Return the error in the size of the mounted filesystem, or ""."""
        size = self.pair.take.sh("df -B1M --output=size /srv/cut | tail -1").stdout
        return "" if int(size) > 0.8 * mib else f"{size.strip()} MiB of {mib}"


def run_all(pair: Pair, report: CrashReport, dice: random.Random, rollbacks: int) -> None:
    """Kill at every point of every command up to the mount, and of growing and deletion."""
    matrix = KillMatrix(pair, report, dice)
    for case in ATTACH_PATH:
        matrix.kill_at_each_point(case, rollbacks // len(ATTACH_PATH))
        matrix.run(case, case.words)
    matrix.grow()
    for case in reversed(ATTACH_PATH[1:]):
        matrix.run(case, case.back)
    create = ATTACH_PATH[0]
    matrix.kill_final(create._replace(name="delete", words=create.back), create.words)
    report.case("all", "lab: leaks", "; ".join([*leak_check.leaks(pair), *matrix.live()]))


def run(report: CrashReport, *, size: Size, seed: int) -> None:
    """Restore a pair and run the whole kill matrix on it."""
    dice = random.Random(seed)
    with restore_pair(ready()) as pair:
        run_all(pair, report, dice, ROLLBACKS[size])

"""Power cuts at random moments: of give, of take, of both, at rest and in the middle of a verb.

A volume is mounted on take by its unit, and a writer fills it with blocks. Afterwards the export is
back, the mount is back, every block whose fsync was acknowledged is there, every operation has
ended, and nothing is there that no record knows.
"""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.lab import oracle
from tests.lab.errors import LabError
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from tests.crash.report import Report, Size
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

CUTS = {"short": 0, "full": 20, "long": 60}
WRITER = Path(__file__).with_name("writer.py")
PLACE = "/root/writer.py"
NAME, PATH = "data", "/srv/data"
FILE = f"{PATH}/blocks"
UNIT = f"zfsilo-volume@{NAME}.service"
WISH = f'server = "give"\nmount_path = "{PATH}"\nfs_type = "ext4"\n'
STEP_S, RECOVERY_S = 180, 300
LONGEST_S = 4.0  # from the beginning of a verb to the cut
ACKNOWLEDGED = re.compile(rb"acknowledged (\d+)\r*\n")
PUBLISHED = """
until grep -qx 1 /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/enable 2>/dev/null; do sleep 0.2; done
"""
MOUNTED = f"until systemctl is-active -q {UNIT} && mountpoint -q {PATH}; do sleep 0.2; done"
WRITES = f"touch {PATH}/alive && sync {PATH}/alive"


class Verb(NamedTuple):
    """What is under way when the power goes; `needs` stands before it."""

    name: str
    machine: str
    words: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...] = ()


CREATE = ("give", "create", "more", "64M", "--host", "take")
PUBLISH = ("give", "publish", "more", "take")
CONNECT = ("take", "connect", "more", "--server", "give", "--no-publish")
STAGE = ("take", "stage", "more", "--fs-type", "ext4")
LADDER = (CREATE, PUBLISH, CONNECT, STAGE, ("take", "mount", "more", "/srv/more"))
DESCENT = (
    ("take", "unmount", "more", "--all"), ("take", "unstage", "more"),
    ("take", "disconnect", "more"), ("give", "unpublish", "more", "--all"),
    ("give", "delete", "more", "--yes"),
)  # fmt: skip


def verbs() -> list[Verb]:
    """Return rest, and every verb up and down the ladder with what stands before it."""
    found = [Verb("at rest", "take", ())]
    for state, step in enumerate(LADDER):
        found.append(Verb(step[1], step[0], step[1:], LADDER[:state]))
    for state, step in enumerate(DESCENT):
        stands = LADDER[: len(LADDER) - state]
        found.append(Verb(step[1], step[0], step[1:], stands))
    return found


class Load:
    """The pair with its mounted volume, and how far its writer got."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.last = -1
        self._seen = 0  # of take's console
        self._tail = b""

    def begin(self) -> None:
        """Make the volume, mount it by its unit, and begin to write."""
        give, take = self.pair.give, self.pair.take
        ctl(give, "create", NAME, "256M", "--host", "take")
        take.put(f"/etc/zfsilo/volumes.d/{NAME}.toml", WISH.encode(), 0o644)
        take.put(PLACE, WRITER.read_bytes(), 0o600)
        take.run("systemctl", "enable", "--now", UNIT, timeout_s=STEP_S)
        take.run("sync")  # what the administrator wrote is not what is tested
        self.write()

    def write(self) -> None:
        """Let the writer go on behind what was acknowledged."""
        command = ("python3", PLACE, "write", FILE, str(self.last + 1))
        self.pair.take.run("systemd-run", "-q", "--collect", "--unit=writer", *command)
        known, end = self.last, time.monotonic() + STEP_S
        while self.last == known and time.monotonic() < end:
            time.sleep(0.1)  # nobody tells when a file grows
            self.look()
        if self.last == known:
            raise LabError(f"nothing is written; {self.pair.take.console_tail()}")

    def look(self) -> None:
        """Take note of what was acknowledged since."""
        console = self.pair.take.place.console
        with console.open("rb") as file:
            file.seek(self._seen)
            text = self._tail + file.read()
            self._seen = file.tell()
        self._tail = text[-40:]
        self.last = max([self.last, *(int(n) for n in ACKNOWLEDGED.findall(text))])

    def restarted(self) -> None:
        """A new emulator begins a new console."""
        self._seen, self._tail = 0, b""

    def check(self) -> str:
        """Return what is wrong with the blocks on disk ("": nothing)."""
        take = self.pair.take
        take.sh("systemctl stop writer.service 2>/dev/null || true", timeout_s=STEP_S)
        self.look()
        take.sh("echo 3 > /proc/sys/vm/drop_caches")
        done = take.run(
            "python3", PLACE, "check", FILE, str(self.last), timeout_s=STEP_S, check=False
        )
        return f"data: {done.stdout}{done.stderr}" if done.rc else ""


def ctl(machine: Machine, *words: str, check: bool = True) -> None:
    """Run a verb about a volume there."""
    machine.run("zfsiloctl", "volume", *words, timeout_s=STEP_S, check=check)


def cut_once(load: Load, verb: Verb, whom: str, dice: random.Random) -> str:
    """Cut the power once; return what is wrong afterwards ("": nothing)."""
    pair = load.pair
    machines = {"give": pair.give, "take": pair.take}
    for machine, *words in verb.needs:
        ctl(machines[machine], *words)
    if verb.words:
        machines[verb.machine].run(
            "systemd-run", "-q", "--collect", "zfsiloctl", "volume", *verb.words
        )
    time.sleep(dice.uniform(0, LONGEST_S))
    load.look()
    cut(load, whom)
    problems = recovered(load)
    problem = load.check()
    tidy(pair)
    problems += [problem] if problem else []
    problems += oracle.leaks(pair)
    load.write()
    return "; ".join(problems)


def cut(load: Load, whom: str) -> None:
    """Kill the emulators, and start them again."""
    pair = load.pair
    gone = [each for each in (pair.give, pair.take) if whom in (each.name, "both")]
    for machine in gone:
        machine.power_off()
    if pair.take in gone:
        load.look()
        load.restarted()
    if len(gone) == 2:
        pair.both(lambda machine: machine.cold_start())
    else:
        gone[0].cold_start()


def recovered(load: Load) -> list[str]:
    """Wait for what must come back without a person; return what did not."""
    pair, problems = load.pair, []
    for machine, script, what in (
        (pair.give, PUBLISHED, "the export"), (pair.take, MOUNTED, "the mount"),
        (pair.take, WRITES, "writing"),
    ):  # fmt: skip
        try:
            machine.sh(f"timeout {RECOVERY_S} sh -euc '{script}'", timeout_s=RECOVERY_S + 20)
        except LabError as error:
            problems.append(f"{what} did not come back: {error}")
    for machine in (pair.give, pair.take):
        problems += ended(machine)
    return problems


def ended(machine: Machine) -> list[str]:
    """Wait until every operation has ended; return those that do not."""
    end = time.monotonic() + RECOVERY_S
    while True:
        shown = machine.run("zfsiloctl", "operation", "list", "--json", timeout_s=STEP_S).stdout
        live = [o for o in json.loads(shown)["operations"] if not o.get("end_time")]
        if not live or time.monotonic() > end:
            return [f"{machine.name}: {o['name']} is {o['state']}" for o in live]
        time.sleep(0.5)


def tidy(pair: Pair) -> None:
    """Take down what the verb was about, from whichever state it is at."""
    machines = {"give": pair.give, "take": pair.take}
    for machine, *words in DESCENT:
        ctl(machines[machine], *words, check=False)


def run(report: Report, *, size: Size, seed: int) -> None:
    """Cut the power at random moments, in every verb, of every machine."""
    dice = random.Random(seed)
    if not CUTS[size]:
        return
    with restore_pair(ready()) as pair:
        load = Load(pair)
        load.begin()
        begun = time.monotonic()
        for number in range(CUTS[size]):
            verb = verbs()[number % len(verbs())]
            whom = dice.choice(("give", "take", "both"))
            try:
                problem = cut_once(load, verb, whom, dice)
            except LabError as error:
                problem = f"{type(error).__name__}: {error}"
            report.case(verb.name, f"power: {whom}", problem)
            report.say(
                f"{number + 1}: {whom} in {verb.name}; {load.last} blocks; {problem or 'ok'}"
            )
        seconds = time.monotonic() - begun
        report.note(
            f"{CUTS[size]} power cuts in {seconds:.0f} s, {load.last + 1} blocks acknowledged"
        )

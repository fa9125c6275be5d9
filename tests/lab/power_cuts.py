"""Power cuts of give, take or both at random moments, at rest and during a request.

A volume is mounted on take by its unit, and a writer writes blocks to it. After the cut, export and
mount must be restored, every acknowledged block must be complete, every operation must have ended,
and no object may exist without a record.
"""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.lab import leak_check
from tests.lab.errors import LabError
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from tests.crash.report import CrashReport, Size
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

CUTS = {"short": 0, "full": 20, "long": 60}
WRITER = Path(__file__).with_name("writer.py")
WRITER_PATH = "/root/writer.py"
NAME, PATH = "data", "/srv/data"
FILE = f"{PATH}/blocks"
UNIT = f"zfsilo-volume@{NAME}.service"
ATTACH_CONFIG = f'server = "give"\nmount_path = "{PATH}"\nfs_type = "ext4"\n'
STEP_S, RECOVERY_S = 180, 300
MAX_DELAY_S = 4.0  # from the start of a request to the cut
ACKNOWLEDGED = re.compile(rb"acknowledged (\d+)\r*\n")
EXPORTED = """
until grep -qx 1 /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/enable 2>/dev/null; do sleep 0.2; done
"""
MOUNTED = f"until systemctl is-active -q {UNIT} && mountpoint -q {PATH}; do sleep 0.2; done"
WRITES = f"touch {PATH}/alive && sync {PATH}/alive"


class Activity(NamedTuple):
    """The command that runs when the power is cut, and the commands that must precede it."""

    name: str
    machine: str
    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()


CREATE = ("give", "create", "more", "64M", "--host", "take")
PUBLISH = ("give", "publish", "more", "take")
CONNECT = ("take", "connect", "more", "--server", "give", "--no-publish")
STAGE = ("take", "stage", "more", "--fs-type", "ext4")
ATTACH_PATH = (CREATE, PUBLISH, CONNECT, STAGE, ("take", "mount", "more", "/srv/more"))
DETACH_PATH = (
    ("take", "unmount", "more", "--all"),
    ("take", "unstage", "more"),
    ("take", "disconnect", "more"),
    ("give", "unpublish", "more", "--all"),
    ("give", "delete", "more", "--yes"),
)


def activities() -> list[Activity]:
    """Return rest, and every command of both paths with the commands that must precede it."""
    result = [Activity("at rest", "take", ())]
    for index, (machine, *words) in enumerate(ATTACH_PATH):
        result.append(Activity(words[0], machine, tuple(words), ATTACH_PATH[:index]))
    for index, (machine, *words) in enumerate(DETACH_PATH):
        before = ATTACH_PATH[: len(ATTACH_PATH) - index]
        result.append(Activity(words[0], machine, tuple(words), before))
    return result


class Load:
    """The pair with a mounted volume, and the last block that its writer acknowledged."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.last = -1
        self._read_bytes = 0  # of take's console
        self._tail = b""

    def start(self) -> None:
        """Create the volume, mount it by its unit, and start the writer."""
        give, take = self.pair.give, self.pair.take
        ctl(give, "create", NAME, "256M", "--host", "take")
        take.put(f"/etc/zfsilo/volumes.d/{NAME}.toml", ATTACH_CONFIG.encode(), 0o644)
        take.put(WRITER_PATH, WRITER.read_bytes(), 0o600)
        take.run("systemctl", "enable", "--now", UNIT, timeout_s=STEP_S)
        take.run("sync")  # files of the administrator are not under test
        self.write()

    def write(self) -> None:
        """Start the writer after the last acknowledged block."""
        command = ("python3", WRITER_PATH, "write", FILE, str(self.last + 1))
        self.pair.take.run("systemd-run", "-q", "--collect", "--unit=writer", *command)
        last, end = self.last, time.monotonic() + STEP_S
        while self.last == last and time.monotonic() < end:
            time.sleep(0.1)  # the console is a file of the emulator
            self.read_console()
        if self.last == last:
            raise LabError(f"the writer acknowledges no block; {self.pair.take.console_tail()}")

    def read_console(self) -> None:
        """Read the acknowledgements since the last call."""
        console = self.pair.take.paths.console
        with console.open("rb") as file:
            file.seek(self._read_bytes)
            text = self._tail + file.read()
            self._read_bytes = file.tell()
        self._tail = text[-40:]
        self.last = max([self.last, *(int(n) for n in ACKNOWLEDGED.findall(text))])

    def restarted(self) -> None:
        """Read the console from its start: a new emulator has emptied it."""
        self._read_bytes, self._tail = 0, b""

    def check(self) -> str:
        """Return the errors in the blocks on disk, or ""."""
        take = self.pair.take
        take.sh("systemctl stop writer.service 2>/dev/null || true", timeout_s=STEP_S)
        self.read_console()
        take.sh("echo 3 > /proc/sys/vm/drop_caches")
        done = take.run(
            "python3", WRITER_PATH, "check", FILE, str(self.last), timeout_s=STEP_S, check=False
        )
        return f"data: {done.stdout}{done.stderr}" if done.rc else ""


def ctl(machine: Machine, *words: str, check: bool = True) -> None:
    """Run a command of `zfsiloctl volume` on a machine."""
    machine.run("zfsiloctl", "volume", *words, timeout_s=STEP_S, check=check)


def cut_once(load: Load, activity: Activity, target: str, dice: random.Random) -> str:
    """Cut the power once; return the problems afterwards, or ""."""
    pair = load.pair
    machines = {"give": pair.give, "take": pair.take}
    for machine, *words in activity.before:
        ctl(machines[machine], *words)
    if activity.words:
        command = ("systemd-run", "-q", "--collect", "zfsiloctl", "volume", *activity.words)
        machines[activity.machine].run(*command)
    time.sleep(dice.uniform(0, MAX_DELAY_S))
    load.read_console()
    cut(load, target)
    problems = recovered(load)
    problem = load.check()
    tidy(pair)
    problems += [problem] if problem else []
    problems += leak_check.leaks(pair)
    load.write()
    return "; ".join(problems)


def cut(load: Load, target: str) -> None:
    """Kill the emulators and start them again."""
    pair = load.pair
    machines = [item for item in (pair.give, pair.take) if target in (item.name, "both")]
    for machine in machines:
        machine.power_off()
    if pair.take in machines:
        load.read_console()
        load.restarted()
    if len(machines) == 2:
        pair.both(lambda machine: machine.cold_start())
    else:
        machines[0].cold_start()


def recovered(load: Load) -> list[str]:
    """Wait until export, mount and writes are restored; return those that are not."""
    pair, problems = load.pair, []
    for machine, script, name in (
        (pair.give, EXPORTED, "export"),
        (pair.take, MOUNTED, "mount"),
        (pair.take, WRITES, "writing"),
    ):
        try:
            machine.sh(f"timeout {RECOVERY_S} sh -euc '{script}'", timeout_s=RECOVERY_S + 20)
        except LabError as error:
            problems.append(f"{name} is not restored: {error}")
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
            return [f"{machine.name}: {o['name']} is {o['state']}: {o.get('error')}" for o in live]
        time.sleep(0.5)


def tidy(pair: Pair) -> None:
    """Detach and delete the volume of the activity, from any state."""
    machines = {"give": pair.give, "take": pair.take}
    for machine, *words in DETACH_PATH:
        ctl(machines[machine], *words, check=False)


def run(report: CrashReport, *, size: Size, seed: int) -> None:
    """Cut the power at random moments, during every command, of every machine."""
    dice = random.Random(seed)
    if not CUTS[size]:
        return
    with restore_pair(ready()) as pair:
        load = Load(pair)
        load.start()
        started = time.monotonic()
        for number in range(CUTS[size]):
            activity = activities()[number % len(activities())]
            target = dice.choice(("give", "take", "both"))
            try:
                problem = cut_once(load, activity, target, dice)
            except LabError as error:
                problem = f"{type(error).__name__}: {error}"
            report.case(activity.name, f"power: {target}", problem)
            report.say(
                f"{number + 1}: {target}, {activity.name}; {load.last} blocks; {problem or 'ok'}"
            )
        seconds = time.monotonic() - started
        report.note(
            f"{CUTS[size]} power cuts in {seconds:.0f} s, {load.last + 1} blocks acknowledged"
        )

"""A sample of the matrix under a real systemd: units are killed, OnFailure starts the rollbacks.

Only the host is simulated. The fuse of its facts kills or fails the worker at an effect; the daemon
is killed while the unit runs, and its socket and the supervisor bring it back.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.systemd.install import install
from tests.systemd.namespace import SystemdHost
from zfsilod.host.fake import Facts
from zfsilod.model.marks import EPOCH

if TYPE_CHECKING:
    from tests.crash.report import CrashReport, Size
    from tests.systemd.namespace import InnerResult

DROP_IN = "[Service]\nExecStart=\nExecStart=/usr/bin/zfsilod --simulate-host\n"
CONFIG = '[daemon]\nhost_id = "give"\n'
FACTS = "var/lib/zfsilo/facts.json"
SAMPLE = {"short": 6, "full": 60, "long": 300}
DEADLINE_S = 60
TWICE = "error, again in rollback"
HOWS = ("error", "kill worker", "kill daemon", "kill both", TWICE)


class CommandCase(NamedTuple):
    """A command of zfsiloctl, those before it, and the number of its effects."""

    request: str
    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...]
    effects: int


CREATE = ("create", "data", "1G")
PUBLISH = ("publish", "data", "take")
CASES = (
    CommandCase("create", CREATE, (), 1),
    CommandCase("update", ("resize", "data", "2G"), (CREATE,), 1),
    CommandCase("publish", PUBLISH, (CREATE,), 10),
    CommandCase("unpublish", ("unpublish", "data", "--all"), (CREATE, PUBLISH), 9),
    CommandCase("delete", ("delete", "data", "--yes"), (CREATE,), 1),
)


class UnitsHost:
    """A machine with zfsilod over a simulated host."""

    def __init__(self, machine: SystemdHost) -> None:
        self.machine = machine
        machine.write("/etc/systemd/system/zfsilod.service.d/simulate.conf", DROP_IN)
        machine.write("/etc/zfsilo/zfsilod.toml", CONFIG)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", "zfsilod.socket", "zfsilod.service")
        self.ctl("host", "add", "take", "--iqn", "iqn.2024-01.lab.take:host")
        self.facts = Facts(machine.root / FACTS)

    def ctl(self, *words: str, check: bool = True) -> InnerResult:
        """Run zfsiloctl there."""
        return self.machine.run("zfsiloctl", *words, check=check, timeout_s=DEADLINE_S)

    def volume(self, *words: str, check: bool = True) -> InnerResult:
        """Run a request about a volume."""
        return self.ctl("volume", *words, check=check)

    def operations(self) -> list[dict[str, Any]]:
        """Return all operations, oldest first."""
        listed = self.ctl("operation", "list", "--json").stdout
        operations: list[dict[str, Any]] = json.loads(listed)["operations"]
        return operations

    def ended(self) -> str:
        """Wait until the newest operation has ended, and return its state."""
        end = time.monotonic() + DEADLINE_S
        while not (newest := self.operations()[-1]).get("end_time"):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return str(newest["state"]).removeprefix("OPERATION_STATE_")

    def kept(self) -> dict[str, Any]:
        """Return the facts, without the owner of the pool and the epochs, which never go back."""
        facts = self.facts.snapshot()
        facts = {name: fact for name, fact in facts.items() if not name.startswith("owner:")}
        for fact in facts.values():
            if isinstance(fact, dict):
                fact.get("properties", {}).pop(EPOCH, None)
        return facts

    def clean(self) -> None:
        """Remove the volume."""
        self.facts.douse()
        self.volume("unpublish", "data", "--all", check=False)
        self.volume("delete", "data", "--yes", check=False)


def inject(host: UnitsHost, case: CommandCase, how: str, when: str, effect: int) -> str:
    """Run a case with a fault; return the problem afterwards, or an empty text."""
    for words in case.before:
        host.volume(*words)
    before = host.kept()
    if how != "kill daemon":
        worker = "kill" if how in ("kill worker", "kill both") else "error"
        then = (2,) if how == TWICE else ()
        host.facts.light_fuse(effect, when=when, how=worker, then=then)
    if how in ("kill daemon", "kill both"):
        with host.machine.start("zfsiloctl", "volume", *case.words):
            host.machine.run("systemctl", "kill", "--signal=KILL", "zfsilod.service", check=False)
    else:
        host.volume(*case.words, check=False)
    host.machine.run("systemctl", "start", "zfsilod.service")
    state = host.ended()
    after = host.kept()
    problem = ""
    if state == "ROLLED_BACK" and after != before:
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        problem = f"rolled back, but {sorted(names)} changed"
    elif state == "DONE":
        problem = "; ".join(map(str, differences(host)))
    elif state != "ROLLED_BACK":
        problem = f"the operation is {state}"
    host.clean()
    left = host.kept()
    return problem or (f"left behind: {sorted(left)}" if left else "")


def differences(host: UnitsHost) -> list[object]:
    """Return the differences between records and facts."""
    report = host.volume("sync", "--all", "--dry-run", "--json").stdout
    return list(json.loads(report).get("differences", []))


def run(report: CrashReport, *, size: Size, seed: int) -> None:
    """Inject random faults."""
    dice = random.Random(seed)
    machine = SystemdHost()
    install(machine)
    with machine:
        host = UnitsHost(machine)
        for _time in range(SAMPLE[size]):
            case = dice.choice(CASES)
            how = dice.choice(HOWS)
            when, effect = dice.choice(("before", "after")), dice.randint(1, case.effects)
            problem = inject(host, case, how, when, effect)
            where = f"{when} effect {effect}: "
            report.case(case.request, f"units: {how}", problem and where + problem)

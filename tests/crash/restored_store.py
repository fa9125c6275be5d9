"""Restored stores: the store of any moment of a request comes back after the request has ended.

Each case runs without a fault, and the store is copied after each of its writes. Then every zvol is
written to, and each copy in turn is put in place of the store: at once, after every initiator has
logged in, and after a reboot. The daemon recovers and compares all volumes. Whatever the copy says:
no zvol and no snapshot is gone, nothing that was written is gone, no initiator has access that had
none, and none has access with other secrets. A request that changes access counts the epoch.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.crash.matrix import CaseRunner
from tests.crash.randomness import CountedRandomness
from tests.crash.simulated_machine import simulated_machine
from tests.service_fixture import administrator
from zfsilod.model.records import Publication, Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.crash.cases import Case
    from tests.crash.report import CrashReport, Size
    from tests.crash.simulated_machine import SimulatedMachine

Pairs = list[tuple[bytes, bytes]]
Facts = dict[str, Any]
WRITTEN = {"type": "ext4", "uuid": "written by a client"}


@contextmanager
def copies(machine: SimulatedMachine) -> Iterator[list[Pairs]]:
    """Collect a copy of the store before and after each write of daemon and workers."""
    stores: list[Pairs] = []
    change = type(machine.store).change

    @contextmanager
    def copied(store: Any) -> Iterator[Any]:
        with change(store) as txn:
            yield txn
        stores.append(machine.dump()[0])

    stores.append(machine.dump()[0])
    with mock.patch("zfsilod.storage.store.Store.change", copied):
        yield stores


async def restore_at_every_point(case: Case, directory: Path, report: CrashReport) -> None:
    """Run one case, then restore each copy of its store and check what the daemon does."""
    randomness = CountedRandomness()
    with randomness.patched(), mock.patch("zfsilod.service.supervisor.REPAIR_PAUSES_S", (0,)):
        async with simulated_machine(directory, case.settings) as machine:
            runner = CaseRunner(case, machine, randomness)
            await runner.prepare()
            await machine.load(runner.start)
            randomness.restore()
            machine.injector.set()
            access = accesses(machine)
            with copies(machine) as stores:
                await machine.carry_out(case.submit)
            problem = "; ".join(uncounted(access, accesses(machine)))
            report.case(case.request.kind, "epoch", f"{case.name}: {problem}" if problem else "")
            facts = written(machine.host.facts.snapshot())
            stores.insert(0, runner.whole[0])
            for number, store in enumerate(stores):
                for moment, since in SINCE.items():
                    await machine.load((store, facts | since(facts)))
                    if moment == "rebooted":
                        machine.reboot()
                        await machine.stop_daemon()
                        machine.start_daemon()
                    await recover(machine)
                    problems = list(losses(facts, machine.host.facts.snapshot()))
                    problem = f"{case.name}, copy {number}, {moment}: {'; '.join(problems)}"
                    report.case(case.request.kind, "restored store", problem if problems else "")


def logged_in(facts: Facts) -> Facts:
    """Return a session of each initiator with access."""
    sessions = {}
    for name in facts:
        if name.startswith("acl:"):
            target, _slash, initiator = name.removeprefix("acl:").partition("/")
            sessions[f"session:{target}"] = {"initiator": initiator, "lost": False}
    return {name: fact for name, fact in sessions.items() if name not in facts}


SINCE: dict[str, Callable[[Facts], Facts]] = {
    "unchanged": lambda _facts: {},
    "logged in": logged_in,
    "rebooted": lambda _facts: {},
}
"""What happened since: moments of the machine at which a copy is restored."""


def accesses(machine: SimulatedMachine) -> dict[str, tuple[object, int]]:
    """Return who may use each zvol, with which secrets, and the epoch of the zvol, by its guid."""
    with machine.store.read() as txn:
        publications = list(txn.scan(Publication))
        volumes = list(txn.scan(Volume))
    return {
        volume.guid: (
            (
                volume.hosts,
                sorted(
                    (one.initiator, one.secret, one.readonly)
                    for one in publications
                    if one.volume == volume.id
                ),
            ),
            machine.host.zfs.find_epoch(volume.dataset)[0],
        )
        for volume in volumes
    }


def uncounted(
    before: dict[str, tuple[object, int]], after: dict[str, tuple[object, int]]
) -> Iterator[str]:
    """Yield the zvols whose access is another, with the epoch of before."""
    for guid, (access, epoch) in before.items():
        now, epoch_now = after.get(guid, (access, epoch))
        if now != access and epoch_now <= epoch:
            yield f"access to zvol {guid} is {now}, not {access}, and its epoch is still {epoch}"


async def recover(machine: SimulatedMachine) -> None:
    """Let a new daemon recover its operations and repair what differs, twice."""
    for _pass in range(2):
        await machine.supervisor.recover()
        while machine.busy_units():
            await asyncio.gather(*machine.busy_units(), return_exceptions=True)
        machine.request(
            lambda fixture: fixture.service.reconciler.sync_all(caller=administrator("boot"))
        )
        await asyncio.gather(*machine.requests, return_exceptions=True)


def written(facts: Facts) -> Facts:
    """Return the facts after somebody wrote to every zvol."""
    zvols = [fact["uid"] for name, fact in facts.items() if name.startswith("zvol:")]
    return facts | {f"content:{uid}": facts.get(f"content:{uid}") or WRITTEN for uid in zvols}


def losses(before: Facts, after: Facts) -> Iterator[str]:
    """Yield what is gone, and who has access now."""
    guids = {fact["guid"] for name, fact in after.items() if name.startswith("zvol:")}
    for name, fact in before.items():
        if name.startswith("zvol:") and fact["guid"] not in guids:
            yield f"{name} is gone"
        if name.startswith(("cut:", "content:")) and _data(after.get(name)) != _data(fact):
            if _by_guid(name, before) == _by_guid(name, after, before):
                continue  # the zvol has another uid: it was put aside, or is back
            yield f"{name} is {after.get(name)}, not {fact}"
    for name, fact in after.items():
        if name.startswith("acl:") and before.get(name) != fact:
            former = "is admitted again" if name not in before else "has other secrets"
            yield f"{name} {former}"


def _by_guid(name: str, facts: Facts, named_in: Facts | None = None) -> object:
    """Return the content of a zvol, or of the snapshots of a set, by the guids of the zvols.

    `named_in`: the facts in which the zvol has the uid in the name.
    """
    guids = {fact["uid"]: fact["guid"] for key, fact in facts.items() if key.startswith("zvol:")}
    kind, _colon, uid = name.partition(":")
    if kind == "cut":
        contents = (facts.get(name) or {"of": {}})["of"].items()
        return {guids.get(volume): content for volume, content in contents}
    zvols = [fact for key, fact in (named_in or facts).items() if key.startswith("zvol:")]
    guid = next((zvol["guid"] for zvol in zvols if zvol["uid"] == uid), "")
    present = next((one for one, its in guids.items() if its == guid), "")
    return _data(facts.get(f"content:{present}"))


def _data(fact: Facts | None) -> Facts:
    """Return a content without the size, which a client learns again from the device."""
    return {name: value for name, value in (fact or {}).items() if name != "size"}


def run(report: CrashReport, *, size: Size, seed: int, cases: Sequence[Case]) -> None:
    """Run cases."""
    logging.disable(logging.ERROR)  # the daemon logs each operation that it cannot roll back
    for case in cases:
        before = report.passed.total()
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(restore_at_every_point(case, Path(directory), report))
        report.say(f"{case.name}, restored store: {report.passed.total() - before} passed")
    logging.disable(logging.NOTSET)

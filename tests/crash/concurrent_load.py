"""Concurrent load: many clients make random requests; in the end records and facts must agree."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.crash.cases import HOST
from tests.crash.reference_model import GIB, PATHS, REQUESTS, DrawnRequest
from tests.crash.simulated_machine import SimulatedMachine, simulated_machine
from tests.service_fixture import administrator
from zfsilod.model.errors import DeadlineExceeded, Internal, ZfsiloError
from zfsilod.model.records import Attachment, Volume

if TYPE_CHECKING:
    from tests.crash.report import CrashReport, Size

CLIENTS, VOLUMES = 32, 16
SECONDS = {"short": 5, "full": 120, "long": 600}
NAMED_BY_UID = ("backstore", "target", "lun", "portals", "acl", "mapped", "session", "node")


async def client(
    machine: SimulatedMachine, dice: random.Random, until: float, tally: Counter[str]
) -> None:
    """Make random requests until a time; every refusal must be a typed error."""
    while time.monotonic() < until:
        name = f"v{dice.randrange(VOLUMES):02}"
        request = DrawnRequest(dice.choice(REQUESTS), dice.choice(PATHS))
        try:
            await machine.fixture.do(request.of(name, GIB * dice.randint(1, 8)))
        except (DeadlineExceeded, Internal) as error:
            tally[f"{type(error).__name__}: {error.message}"] += 1
        except ZfsiloError:
            tally["refused"] += 1
        else:
            tally["done"] += 1


async def run_clients(
    machine: SimulatedMachine, seconds: float, number: int
) -> tuple[Counter[str], list[str]]:
    """Run the clients for a time; return their outcomes, and the problems afterwards."""
    await machine.fixture.do(HOST)
    tally: Counter[str] = Counter()
    supervisor = asyncio.create_task(machine.supervisor.run())
    until = time.monotonic() + seconds
    seeded = [random.Random(f"{number} {index}") for index in range(CLIENTS)]
    await asyncio.gather(*(client(machine, dice, until, tally) for dice in seeded))
    supervisor.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await supervisor
    await machine.settle()
    return tally, await problems(machine)


async def problems(machine: SimulatedMachine) -> list[str]:
    """Return differences between records and facts, live operations, claims and leaks."""
    report = await machine.fixture.service.reconciler.sync_all(
        caller=administrator("load"), validate_only=True
    )
    problems = [
        f"{volume_report.volume}: {difference.fact}"
        for volume_report in report.reports
        for difference in volume_report.differences
        if difference.reason != "NOT_RESTORED"
    ]
    with machine.fixture.service.context.store.read() as txn:
        problems += [f"{operation.title} is {operation.state}" for operation in txn.live()]
        problems += [f"claim {key!r}" for key, _value in txn.items(b"claim/")]
        volumes = list(txn.scan(Volume))
        uids = {volume.uid for volume in volumes}
        uids |= {attachment.disk.serial for attachment in txn.scan(Attachment)}
    zvols = {f"zvol:{volume.dataset}" for volume in volumes}
    for name in machine.fixture.facts:
        kind = name.partition(":")[0]
        if kind == "zvol" and name not in zvols:
            problems.append(f"leaked {name}")
        if kind in NAMED_BY_UID and not any(uid in name for uid in uids):
            problems.append(f"leaked {name}")
    return problems


async def _run(seconds: float, number: int) -> tuple[Counter[str], list[str]]:
    with tempfile.TemporaryDirectory() as directory:
        async with simulated_machine(Path(directory)) as machine:
            return await run_clients(machine, seconds, number)


def run(report: CrashReport, *, size: Size, seed: int) -> None:
    """Run 32 clients over 16 volumes."""
    seconds = SECONDS[size]
    tally, wrong = asyncio.run(_run(seconds, seed))
    expected = {"done", "refused"}
    wrong += [f"{count} x {outcome}" for outcome, count in tally.items() if outcome not in expected]
    report.case("all", f"{CLIENTS} clients", "; ".join(wrong[:5]))
    report.note(f"{CLIENTS} clients, {seconds} s: {tally['done']} done, {tally['refused']} refused")

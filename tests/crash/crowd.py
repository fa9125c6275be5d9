"""Many clients at once, with requests drawn by lot; in the end records and facts agree."""

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
from tests.crash.ladder import PATHS, Draw
from tests.crash.life import Machine, machine
from zfsilod.model.errors import DeadlineExceeded, Internal, ZfsiloError
from zfsilod.model.records import Attachment, Volume

if TYPE_CHECKING:
    from tests.crash.report import Report, Size

CLIENTS, VOLUMES = 32, 16
SECONDS = {"short": 5, "full": 120, "long": 600}
NAMED_BY_UID = ("backstore", "target", "lun", "portals", "acl", "mapped", "session", "node")
VERBS = (
    "create",
    "publish",
    "connect",
    "stage",
    "mount",
    "grow",
    "update",
    "sync",
    "unmount",
    "unstage",
    "disconnect",
    "unpublish",
    "delete",
)
GIB = 1 << 30


async def client(built: Machine, dice: random.Random, until: float, tally: Counter[str]) -> None:
    """Ask for one thing after the other; whatever is refused is refused with a typed error."""
    while time.monotonic() < until:
        name = f"v{dice.randrange(VOLUMES):02}"
        request = Draw(dice.choice(VERBS), dice.choice(PATHS))
        try:
            await built.house.do(request.of(name, GIB * dice.randint(1, 8)))
        except (DeadlineExceeded, Internal) as error:
            tally[f"{type(error).__name__}: {error.message}"] += 1
        except ZfsiloError:
            tally["refused"] += 1
        else:
            tally["done"] += 1


async def crowd(built: Machine, seconds: float, number: int) -> tuple[Counter[str], list[str]]:
    """Let the clients work for a time; return what they got, and what is wrong afterwards."""
    await built.house.do(HOST)
    tally: Counter[str] = Counter()
    supervisor = asyncio.create_task(built.supervisor.run())
    until = time.monotonic() + seconds
    every = [random.Random(f"{number} {each}") for each in range(CLIENTS)]
    await asyncio.gather(*(client(built, dice, until, tally) for dice in every))
    supervisor.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await supervisor
    await built.settle()
    return tally, await wrong(built)


async def wrong(built: Machine) -> list[str]:
    """Return what differs between records and facts, and what has not ended."""
    found = [
        f"{each.volume}: {difference.fact}"
        for each in (await built.house.service.sync_all(caller="crowd", validate_only=True)).reports
        for difference in each.differences
        if difference.reason != "NOT_RESTORED"
    ]
    with built.house.service.store.read() as txn:
        found += [f"{each.title} is {each.state}" for each in txn.live()]
        found += [f"claim {key!r}" for key, _value in txn._range(b"claim/", "")]
        zvols = {f"zvol:{each.dataset}" for each in txn.scan(Volume)}
        uids = {each.uid for each in txn.scan(Volume)}
        uids |= {each.disk.serial for each in txn.scan(Attachment)}
    for name in built.house.facts:
        kind = name.partition(":")[0]
        if kind == "zvol" and name not in zvols:
            found.append(f"leaked {name}")
        if kind in NAMED_BY_UID and not any(uid in name for uid in uids):
            found.append(f"leaked {name}")
    return found


async def _run(seconds: float, number: int) -> tuple[Counter[str], list[str]]:
    with tempfile.TemporaryDirectory() as directory:
        async with machine(Path(directory)) as built:
            return await crowd(built, seconds, number)


def run(report: Report, *, size: Size, seed: int) -> None:
    """Let 32 clients work at 16 volumes."""
    tally, found = asyncio.run(_run(SECONDS[size], seed))
    shown = {"done", "refused"}
    found += [f"{count} x {what}" for what, count in tally.items() if what not in shown]
    report.case("all", "32 clients", "; ".join(found[:5]))
    seconds = SECONDS[size]
    report.note(f"{CLIENTS} clients, {seconds} s: {tally['done']} done, {tally['refused']} refused")

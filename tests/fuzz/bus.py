"""Fuzzer of D-Bus: random values over all members; any error but Internal is allowed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from dbus_next import Message, Variant
from dbus_next.signature import SignatureTree

from tests.api.dbus_fixture import GIB, on_private_bus
from tests.fuzz.values import HostileValues
from zfsilod.api.dbus.contract import MANAGER, NAME, ROOT, interfaces, path_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.dbus_fixture import BusClient

AT_ONCE = 16
DEADLINE_S = 20
DEFECT = f"{NAME}.Error.Internal"
SIGNATURES = ("", "s", "t", "a{sv}", "sa{sv}", "ssa{sv}", "as", "v", "b", "sta{sv}", "a{ss}", "o")


class BusOutcome:
    """Error names and failures of the calls."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self.failures: list[str] = []


async def fuzz(directory: Path, count: int, seed: int) -> BusOutcome:
    """Start a zfsilod, and make so many calls."""
    outcome = BusOutcome()
    async with on_private_bus(directory) as fixture:
        client = await fixture.client()
        await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, {})
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                await call(client, outcome, seed + number)

        await asyncio.gather(*(work() for _worker in range(AT_ONCE)))
        client.messages.clear()
        await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "alive-still", GIB, {})
    return outcome


async def call(client: BusClient, outcome: BusOutcome, seed: int) -> None:
    """Make one call, chosen by its seed."""
    values = HostileValues(seed)
    contracts = interfaces().values()
    methods = [method for contract in contracts for method in contract.methods.values()]
    method = values.draw.choice(methods)
    takes = method.input if values.draw.random() < 0.8 else values.draw.choice(SIGNATURES)
    path = values.draw.choice(
        (
            ROOT,
            "/",
            path_of("volume", "data"),
            path_of("volume", "nothing"),
            path_of("host", "take"),
            path_of("operation", "0" * 26),
            f"{ROOT}/volume/_zz",
            f"{ROOT}/other/x",
        )
    )
    message = Message(
        destination=NAME,
        path=path,
        interface=values.draw.choice((method.interface, None)),
        member=method.name,
        signature=takes,
        body=[value(values, kind) for kind in SignatureTree(takes).types],
    )
    async with asyncio.timeout(DEADLINE_S):
        reply = await client.bus.call(message)
    outcome.errors[reply.error_name or "answered"] += 1
    if reply.error_name == DEFECT:
        outcome.failures.append(f"seed {seed}: {method.interface}.{method.name}: {reply.body}")


def value(values: HostileValues, kind: Any) -> Any:
    """Return a random value of a D-Bus type."""
    match kind.token:
        case "s":
            return values.text().replace("\0", "")
        case "o":
            return ROOT
        case "t" | "u":
            return values.number((1 << (64 if kind.token == "t" else 32)) - 1, 0)
        case "b":
            return values.draw.random() < 0.5
        case "v":
            inner = SignatureTree(values.draw.choice(("s", "t", "b", "as", "a{ss}", "u"))).types[0]
            return Variant(inner.signature, value(values, inner))
        case "a" if kind.children[0].token == "{":
            key, item = kind.children[0].children
            names = ("host", "force", "path", "labels", "mode", "validate_only", "", "etag", "thin")
            return {
                values.draw.choice(names) if key.token == "s" else value(values, key): value(
                    values, item
                )
                for _item in range(values.draw.randrange(4))
            }
        case "a":
            return [value(values, kind.children[0]) for _item in range(values.draw.randrange(4))]
    raise AssertionError(f"no value of type {kind.signature}")

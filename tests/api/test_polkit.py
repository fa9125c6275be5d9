"""Authorization by polkit: allowed, denied, without an answer, and without polkit."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from dbus_next import Message, Variant

from tests.api.dbus_fixture import GIB, NOBODY, BusClient, BusFixture, on_private_bus
from zfsilod.api.dbus import polkit as polkit_module
from zfsilod.api.dbus import server
from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    OPERATION,
    ROOT,
    SNAPSHOT,
    SNAPSHOT_POLICY,
    VOLUME,
    interfaces,
    path_of,
)
from zfsilod.security.authorization import ACTIONS, DESTROY, MANAGE, READ

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="needs dbus-daemon"),
    pytest.mark.skipif(os.getuid() != 0, reason="becomes other users"),
]
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
PATHS = {
    MANAGER: ROOT,
    VOLUME: path_of("volume", "nothing"),
    HOST: path_of("host", "take"),
    SNAPSHOT: path_of("snapshot", "nothing"),
    SNAPSHOT_POLICY: path_of("policy", "nothing"),
    OPERATION: path_of("operation", "0" * 26),
    "org.freedesktop.DBus.ObjectManager": ROOT,
}
SAMPLES: dict[str, Any] = {
    "s": "nothing",
    "t": GIB,
    "as": [],
    "a{sv}": {},
    "b": False,
    "v": Variant("s", ""),
}


@contextmanager
def polkit(address: str) -> Iterator[None]:
    """Run dbusmock's polkitd on a private bus."""
    command = [sys.executable, "-m", "dbusmock", "--system", "--template", "polkitd"]
    environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": address}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


class Polkit:
    """Sets the decisions of the polkit mock."""

    def __init__(self, client: BusClient) -> None:
        self._client = client

    async def say(self, member: str, signature: str, value: object) -> None:
        message = Message(
            destination=polkit_module.POLKIT,
            path="/org/freedesktop/PolicyKit1/Authority",
            interface="org.freedesktop.DBus.Mock",
            member=member,
            signature=signature,
            body=[value],
        )
        async with asyncio.timeout(20):
            while (await self._client.bus.call(message)).error_name:
                await asyncio.sleep(0.05)  # it is starting, without a signal when it is ready


async def answers(fixture: BusFixture, user: int) -> dict[str, str]:
    """Call every method as a user, and return the errors by method."""
    client = await fixture.client(user)
    errors = {}
    for name, interface in interfaces().items():
        for method in interface.methods.values():
            body = [SAMPLES[one] for one in _types(method.input)]
            if name in server.OPEN:
                continue
            reply = await client.try_call(
                PATHS.get(name, ROOT), name, method.name, method.input, *body
            )
            errors[f"{name}.{method.name}"] = reply.error
    return errors


def _types(signature: str) -> list[str]:
    from dbus_next.signature import SignatureTree

    return [complete_type.signature for complete_type in SignatureTree(signature).types]


async def test_every_member_needs_its_action(tmp_path: Path) -> None:
    async with on_private_bus(tmp_path) as fixture:
        with polkit(fixture.address):
            decides = Polkit(await fixture.client())
            for allowed in ([], [READ], [READ, MANAGE], [DESTROY]):
                await decides.say("SetAllowed", "as", allowed)
                errors = await answers(fixture, NOBODY)
                assert set(errors) == set(ACTIONS)
                denied = {name for name, error in errors.items() if error == DENIED}
                assert denied == {n for n, action in ACTIONS.items() if action not in allowed}
            assert DENIED not in (await answers(fixture, 0)).values()


async def test_without_polkit_only_root_is_authorized(tmp_path: Path) -> None:
    async with on_private_bus(tmp_path) as fixture:
        assert set((await answers(fixture, NOBODY)).values()) == {DENIED}
        assert DENIED not in (await answers(fixture, 0)).values()


async def test_a_polkit_that_hangs_does_not_delay_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polkit_module, "POLKIT_DEADLINE_S", 1.0)
    async with on_private_bus(tmp_path) as fixture:
        with polkit(fixture.address):
            root, nobody = await fixture.client(), await fixture.client(NOBODY)
            await Polkit(root).say("SimulateHang", "b", True)
            question = (ROOT, MANAGER, "GetCapacity", "s", "")
            hanging = [asyncio.create_task(nobody.try_call(*question)) for _number in range(20)]
            await asyncio.sleep(0)
            started = time.monotonic()
            await root.call(*question)
            assert time.monotonic() - started < 0.5
            errors = [(await task).error for task in hanging]
            assert errors.count("org.zfsilo1.Error.Unavailable") == polkit_module.MAX_CHECKS
            assert errors.count("org.freedesktop.DBus.Error.LimitsExceeded") == 4
            assert not fixture.front.identities.checks

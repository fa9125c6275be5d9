"""polkit decides about whoever is not root: every member, allowed, denied, silent, missing."""

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

from tests.api.dbus_setup import GIB, NOBODY, Client, House, house
from zfsilod.api.dbus import polkit as polkit_module
from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    OPERATION,
    ROOT,
    SNAPSHOT,
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
    """What the double of polkit shall say."""

    def __init__(self, client: Client) -> None:
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
                await asyncio.sleep(0.05)  # it is starting, and nobody hears of that


async def answers(home: House, user: int) -> dict[str, str]:
    """Call every member that there is, as a user, and return the errors by name."""
    client = await home.client(user)
    found = {}
    for name, each in interfaces().items():
        for method in each.methods.values():
            body = [SAMPLES[one] for one in _types(method.input)]
            if name == "org.freedesktop.DBus.Peer":
                continue
            reply = await client.try_call(
                PATHS.get(name, ROOT), name, method.name, method.input, *body
            )
            found[f"{name}.{method.name}"] = reply.error
    return found


def _types(signature: str) -> list[str]:
    from dbus_next.signature import SignatureTree

    return [each.signature for each in SignatureTree(signature).types]


async def test_every_member_needs_its_action(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        with polkit(home.address):
            decides = Polkit(await home.client())
            for allowed in ([], [READ], [READ, MANAGE], [DESTROY]):
                await decides.say("SetAllowed", "as", allowed)
                found = await answers(home, NOBODY)
                assert set(found) == set(ACTIONS)
                denied = {name for name, error in found.items() if error == DENIED}
                assert denied == {n for n, action in ACTIONS.items() if action not in allowed}
            assert DENIED not in (await answers(home, 0)).values()


async def test_without_polkit_root_only(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        assert set((await answers(home, NOBODY)).values()) == {DENIED}
        assert DENIED not in (await answers(home, 0)).values()


async def test_a_polkit_that_hangs_stops_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polkit_module, "POLKIT_DEADLINE_S", 1.0)
    async with house(tmp_path) as home:
        with polkit(home.address):
            root, nobody = await home.client(), await home.client(NOBODY)
            await Polkit(root).say("SimulateHang", "b", True)
            question = (ROOT, MANAGER, "GetCapacity", "s", "")
            hanging = [asyncio.create_task(nobody.try_call(*question)) for _each in range(20)]
            await asyncio.sleep(0)
            begun = time.monotonic()
            await root.call(*question)
            assert time.monotonic() - begun < 0.5
            errors = [(await each).error for each in hanging]
            assert errors.count("org.zfsilo1.Error.Unavailable") == polkit_module.MAX_CHECKS
            assert errors.count("org.freedesktop.DBus.Error.LimitsExceeded") == 4
            assert not home.front.identities.checks

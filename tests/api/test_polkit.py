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
from dbus_next import DBusError, Message, MessageFlag, Variant

from tests.api.dbus_fixture import GIB, NOBODY, PROPERTIES, BusClient, BusFixture, on_private_bus
from zfsilod.api.dbus import polkit as polkit_module
from zfsilod.api.dbus import server
from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    NAME,
    OPERATION,
    REPLICATION_POLICY,
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
    REPLICATION_POLICY: path_of("replication", "nothing"),
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
            assert errors == ["org.zfsilo1.Error.Unavailable"] * 20
            assert not fixture.front.identities.checks


@pytest.mark.parametrize("flags", [MessageFlag.NONE, MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION])
async def test_a_page_reads_many_objects_at_once(tmp_path: Path, flags: MessageFlag) -> None:
    """As the page of Cockpit does for a user of the group zfsilo; polkit is asked few times."""
    async with on_private_bus(tmp_path) as fixture:
        with polkit(fixture.address):
            root, nobody = await fixture.client(), await fixture.client(NOBODY)
            await Polkit(root).say("SetAllowed", "as", [READ])
            asked: list[object] = []
            check = fixture.front.identities.check_authorization

            async def counted(*arguments: Any, **named: Any) -> None:
                asked.append(arguments)
                await check(*arguments, **named)

            fixture.front.identities.check_authorization = counted  # type: ignore[method-assign]
            message = {"destination": NAME, "path": ROOT, "interface": PROPERTIES, "flags": flags}
            calls = [
                nobody.bus.call(Message(**message, member="GetAll", signature="s", body=[MANAGER]))
                for _number in range(100)
            ]
            replies = await asyncio.gather(*calls)
            assert [reply.error_name for reply in replies if reply.error_name] == []
            assert 1 <= len(asked) <= 50


async def test_a_password_is_asked_for_every_change(tmp_path: Path) -> None:
    async with on_private_bus(tmp_path) as fixture:
        identities = fixture.front.identities
        asked: list[str] = []

        async def counted(*arguments: Any, **_named: Any) -> None:
            await asyncio.sleep(0)
            asked.append(arguments[2])

        identities.check_authorization = counted  # type: ignore[method-assign]
        identities.uids[":9.9"] = NOBODY
        for interactive, expected in ((True, 5), (False, 1)):
            asked.clear()
            await asyncio.gather(
                *(identities.authorize(":9.9", DESTROY, interactive=interactive) for _ in range(5))
            )
            assert asked == [DESTROY] * expected


async def test_the_checks_of_a_user_wait_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polkit_module, "MAX_CHECKS", 2)
    monkeypatch.setattr(polkit_module, "MAX_WAITING", 1)
    async with on_private_bus(tmp_path) as fixture:
        identities = fixture.front.identities
        go, running = asyncio.Event(), 0
        most: list[int] = []

        async def held(*_arguments: Any, **_named: Any) -> None:
            nonlocal running
            running += 1
            most.append(running)
            await go.wait()
            running -= 1

        identities.check_authorization = held  # type: ignore[method-assign]
        names = [f":9.{number}" for number in range(4)]
        identities.uids.update(dict.fromkeys(names, NOBODY))
        identities.uids[":9.other"] = NOBODY - 1
        tasks = [asyncio.ensure_future(identities.authorize(name, MANAGE)) for name in names]
        other = asyncio.ensure_future(identities.authorize(":9.other", MANAGE))
        with pytest.raises(DBusError, match="3 authorization checks of uid 65534 are running"):
            await tasks[3]
        tasks[0].cancel()
        go.set()
        assert (await other).subject == f"uid {NOBODY - 1}"
        assert [(await task).subject for task in tasks[1:3]] == [f"uid {NOBODY}"] * 2
        assert max(most) == 3, "two of one user, and one of the other"
        assert not identities.checks
        assert not identities.turns
        assert not identities.shared

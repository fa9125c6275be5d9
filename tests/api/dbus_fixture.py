"""A private bus with zfsilod (tests/service_fixture.py) on it, and clients that call it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.auth import AuthExternal

from tests import service_fixture
from zfsilod.api.dbus.contract import MANAGER, NAME, ROOT, path_of
from zfsilod.api.dbus.server import DbusFront, serve
from zfsilod.systemd.bus import close_socket, wait_while_full

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CONTRACT = Path(__file__).parents[2] / "dbus" / "org.zfsilo1.xml"
POLICY = CONTRACT.with_suffix(".conf")
OPEN = """<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/>
  <allow own="*"/></policy>"""
# The configuration of the system bus, and the policy of zfsilo.
SYSTEM = f"""<policy context="default">
  <allow user="*"/><deny own="*"/><deny send_type="method_call"/><allow send_type="signal"/>
  <allow send_requested_reply="true" send_type="method_return"/>
  <allow send_requested_reply="true" send_type="error"/>
  <allow receive_type="method_call"/><allow receive_type="method_return"/>
  <allow receive_type="error"/><allow receive_type="signal"/>
  <allow send_destination="org.freedesktop.DBus"/>
</policy><include>{POLICY}</include>"""
NOBODY = 65534
DEADLINE_S = 20
GIB = 1 << 30
DATA = path_of("volume", "data")
ZVOL = "1 GiB, thin, blocks of 16 KiB, snapdev=hidden, sync=always, volmode=dev"
CREATE_ZVOL = f"create zvol tank/zfsilo/data ({ZVOL})"
NQN = "nqn.2024-01.lab.other:host"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
BUS_ERROR = "org.freedesktop.DBus.Error"


@contextmanager
def private_bus(policy: str = OPEN) -> Iterator[str]:
    """Run a dbus-daemon, and yield its address."""
    # Not below the directory of pytest, which only root may enter: other users call too.
    directory = Path(tempfile.mkdtemp(prefix="zfsilo-bus-"))
    directory.chmod(0o755)
    address = f"unix:path={directory}/bus"
    config = directory / "bus.conf"
    config.write_text(
        f"<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth>"
        f'<policy context="default"><allow user="*"/></policy>{policy}'
        '<limit name="max_replies_per_connection">4096</limit></busconfig>'
    )
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline(), "dbus-daemon did not start"
        yield address
    finally:
        daemon.terminate()
        daemon.communicate()
        shutil.rmtree(directory)


class Reply:
    """A reply: its body, or the error's name and arguments."""

    def __init__(self, reply: Message) -> None:
        self.error = reply.error_name or ""
        self.body: list[Any] = reply.body
        self.signature: str = reply.signature


class BusClient:
    """Calls methods by dbus-next, and keeps all messages from zfsilod."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus
        self.messages: list[Message] = []
        self._heard = asyncio.Event()
        bus.add_message_handler(self._hear)

    def _hear(self, message: Message) -> None:
        if message.sender != "org.freedesktop.DBus":
            self.messages.append(message)
            self._heard.set()

    @property
    def signals(self) -> list[Message]:
        """The received signals."""
        return [m for m in self.messages if m.message_type is MessageType.SIGNAL]

    async def try_call(
        self, path: str, interface: str | None, member: str, signature: str = "", *body: Any
    ) -> Reply:
        """Call a method, and return its reply or error."""
        message = Message(
            destination=NAME,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        async with asyncio.timeout(DEADLINE_S):
            return Reply(await self.bus.call(message))

    async def call(
        self, path: str, interface: str | None, member: str, signature: str = "", *body: Any
    ) -> list[Any]:
        """Call a method that succeeds, and return its reply."""
        reply = await self.try_call(path, interface, member, signature, *body)
        assert not reply.error, reply.body
        return reply.body

    async def manager(self, member: str, signature: str = "", *body: Any) -> Any:
        """Call a method of the manager, and return the first value of its reply."""
        return (await self.call(ROOT, MANAGER, member, signature, *body))[0]

    async def get(self, path: str, name: str) -> Any:
        """Return the value of a property."""
        properties = "org.freedesktop.DBus.Properties"
        return (await self.call(path, properties, "Get", "ss", "", name))[0].value

    async def end(self, operation: str) -> str:
        """Wait for the end of an operation as a client should, and return its state."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                self._heard.clear()
                state: str = await self.get(operation, "State")
                if state in ("DONE", "ROLLED_BACK", "NEEDS_REPAIR"):
                    return state
                await self._heard.wait()

    async def heard(self, member: str, count: int = 1) -> list[Message]:
        """Wait until this many signals of a name were received, and return them all."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                self._heard.clear()
                signals = [signal for signal in self.signals if signal.member == member]
                if len(signals) >= count:
                    return signals
                await self._heard.wait()

    async def done(self, path: str, interface: str, member: str, *arguments: Any) -> str:
        """Call a mutation and wait until it is done; return the path of its operation."""
        (operation,) = await self.call(path, interface, member, *arguments)
        state = await self.end(operation)
        assert state == "DONE", await self.get(operation, "Error")
        return str(operation)


class BusFixture:
    """A zfsilod on a private bus, server and client in one."""

    def __init__(
        self, built: service_fixture.ServiceFixture, front: DbusFront, address: str
    ) -> None:
        self.built = built
        self.service = built.service
        self.store = built.service.context.store
        self.host = built.host
        self.launcher = built.launcher
        self.front = front
        self.address = address
        self._clients: list[MessageBus] = []

    async def client(self, user: int = 0) -> BusClient:
        """Connect another client, which subscribes to all signals of zfsilod."""
        bus = await connect(self.address, user)
        self._clients.append(bus)
        client = BusClient(bus)
        await bus.call(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member="AddMatch",
                signature="s",
                body=[f"type='signal',sender='{NAME}'"],
            )
        )
        return client

    async def busctl(self, *arguments: str, user: int | None = None) -> str:
        """Run busctl on the private bus, and return what it prints, errors included."""
        process = await asyncio.create_subprocess_exec(
            "busctl",
            f"--address={self.address}",
            *arguments,
            user=user,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _none = await process.communicate()
        return out.decode().strip()

    async def busctl_json(self, *arguments: str) -> Any:
        """Run busctl, and return the data of its JSON."""
        return json.loads(await self.busctl("--json=short", *arguments))["data"]

    async def disconnect(self) -> None:
        """Disconnect all clients."""
        for bus in self._clients:
            await disconnect(bus)


class AuthAs(AuthExternal):  # type: ignore[misc]
    """Authenticates as another user than the real one of this process."""

    def __init__(self, user: int) -> None:
        super().__init__()
        self._user = user

    def _authentication_start(self, negotiate_unix_fd: bool = False) -> str:
        """Return the first line of the authentication (overrides the library's)."""
        own = str(super()._authentication_start(negotiate_unix_fd))
        return f"AUTH EXTERNAL {str(self._user).encode().hex()}" if self._user else own


async def connect(address: str, user: int = 0) -> MessageBus:
    """Connect to a bus, as this user."""
    before = os.geteuid()
    os.seteuid(user or before)  # the kernel reports the uid to the bus, at connect(2)
    try:
        bus = MessageBus(bus_address=address, auth=AuthAs(user))
    finally:
        os.seteuid(before)
    await bus.connect()
    wait_while_full(bus)
    return bus


async def disconnect(bus: MessageBus) -> None:
    """Disconnect from a bus."""
    bus.disconnect()
    await bus.wait_for_disconnect()
    close_socket(bus)


@asynccontextmanager
async def on_private_bus(directory: Path, policy: str = OPEN) -> AsyncIterator[BusFixture]:
    """Run zfsilod on a private bus."""
    with private_bus(policy) as address:
        async with service_fixture.service_fixture(directory / "state") as built:
            front = await serve(address, built.service, version="1.2.3")
            fixture = BusFixture(built, front, address)
            try:
                yield fixture
            finally:
                built.launcher.gate.set()
                await front.close()
                await fixture.disconnect()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


def options(**values: tuple[str, Any]) -> dict[str, Variant]:
    """Return an a{sv}: name=(signature, value)."""
    return {name: Variant(*value) for name, value in values.items()}


async def create(fixture: BusFixture, name: str = "data") -> str:
    """Create a volume, and return its path."""
    client = await fixture.client()
    await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", name, GIB, {})
    return path_of("volume", name)

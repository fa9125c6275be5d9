"""Launchers start workers: as transient systemd units, or as local processes under --simulate.

A launcher starts and stops workers, and calls a hint when one has ended. The outcome is in the
store only; the hint says that it may have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dbus_next import Message, MessageType

from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.storage.secrets import credential
from zfsilod.systemd.bus import check_texts, close_when_sent, connect
from zfsilod.systemd.time_service import SystemClock
from zfsilod.systemd.unit import (
    dialer_name,
    dialer_properties,
    properties,
    reader_name,
    reader_properties,
    rollback_name,
    sender_name,
    sender_properties,
    unit_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dbus_next.aio import MessageBus

    from zfsilod.model.records import Operation

WORKER = "/usr/lib/zfsilo/zfsilo-worker"
GATEWAY = "zfsilo-gateway"  # beside the worker
START = "StartTransientUnit"
UNIT = re.compile(r"zfsilo-(?:op-|rollback@)([0-9a-z]{26})\.service")
SYSTEMD = "org.freedesktop.systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
MANAGER_PATH = "/org/freedesktop/systemd1"
CALL_DEADLINE_S = 20
STATE, JOB_ID = 3, 7  # indexes in a unit of ListUnitsByPatterns: org.freedesktop.systemd1(5)
LIVE_STATES = ("active", "activating", "deactivating", "reloading")

Hint = Callable[[str], None]
"""Called with the name (Operation.unit) of a unit whose job has ended."""

log = logging.getLogger(__name__)


class SystemdLauncher:
    """Starts workers as transient units, over the system bus."""

    def __init__(
        self, bus: MessageBus, *, worker: str, timeout_s: int, debug: bool = False
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._gateway = f"{worker.rpartition('/')[0]}/{GATEWAY}"
        self._debug = debug
        self._timeout_s = timeout_s
        self._hint: Hint | None = None

    @classmethod
    async def connect(
        cls,
        *,
        worker: str = WORKER,
        timeout_s: int,
        debug: bool = False,
        address: str | None = None,
    ) -> SystemdLauncher:
        """Connect to systemd. Raises FailedPrecondition when the rollback template is missing."""
        bus = await connect(address, descriptors=True)
        launcher = cls(bus, worker=worker, timeout_s=timeout_s, debug=debug)
        await launcher.call("Subscribe")
        rule = f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'"
        add_match = Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member="AddMatch",
            signature="s",
            body=[rule],
        )
        await launcher._send(add_match, fatal=True)
        # systemd ignores an OnFailure= unit that is missing.
        rollback = ["zfsilo-rollback@.service"]
        reply = await launcher.call("GetUnitFileState", "s", rollback, fatal=False)
        if reply.message_type == MessageType.ERROR:
            raise FailedPrecondition(
                "zfsilo-rollback@.service is not installed, so nothing could be rolled back: run "
                "make install, or reinstall the package",
                reason="NO_ROLLBACK_UNIT",
            )
        bus.add_message_handler(launcher._on_message)
        return launcher

    def clock(self) -> SystemClock:
        """Return the clock of the host, which asks over the same bus."""
        return SystemClock(self._bus)

    def listen(self, hint: Hint) -> None:
        """Set the hint that is called when a job of a unit has ended."""
        self._hint = hint

    async def start(self, operation: Operation, *others: Operation) -> None:
        """Start the operation's unit. Raises Unavailable when systemd refuses."""
        wanted = properties(
            operation,
            *others,
            worker=self._worker,
            timeout_s=self._timeout_s,
            sealed=bool(credential()),
            debug=self._debug,
        )
        body = [unit_name(operation.unit), "fail", wanted, []]
        await self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", body)

    async def rollback(self, operation: Operation) -> None:
        """Start the operation's rollback unit, unless it runs already."""
        await self.call("StartUnit", "ss", [rollback_name(operation.unit), "fail"])

    async def stop(self, operation: Operation) -> None:
        """Stop the operation's unit, if it runs; its failure starts the rollback."""
        with contextlib.suppress(Unavailable):
            await self.call("StopUnit", "ss", [unit_name(operation.unit), "fail"])

    async def start_reader(self, ticket: str, words: tuple[str, ...], title: str) -> None:
        """Start a unit that reads the blocks of a snapshot, and sends them with its ticket."""
        wanted = reader_properties(self._worker, (ticket, *words), title)
        body = [reader_name(ticket), "fail", wanted, []]
        await self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", body)

    async def stop_reader(self, ticket: str) -> None:
        """Stop the unit of a reader, if it still runs."""
        with contextlib.suppress(Unavailable):
            await self.call("StopUnit", "ss", [reader_name(ticket), "replace"])  # its start too

    async def start_sender(self, ticket: str, words: tuple[str, ...], title: str) -> None:
        """Start a unit that runs zfs send, for the stream with this ticket."""
        wanted = sender_properties(self._worker, (ticket, *words), title)
        await self.call(START, "ssa(sv)a(sa(sv))", [sender_name(ticket), "fail", wanted, []])

    async def start_dialer(self, ticket: str, control: int, title: str) -> None:
        """Start a unit that carries a stream to a peer; `control` becomes its standard input."""
        wanted = dialer_properties(self._gateway, title)
        body = [dialer_name(ticket), "fail", wanted, []]
        await self.call(START, "ssa(sv)a(sa(sv))", body, descriptors=[control])

    async def stop_stream(self, ticket: str) -> None:
        """Stop the units of a stream, if they still run."""
        for name in (dialer_name(ticket), sender_name(ticket)):
            with contextlib.suppress(Unavailable):
                await self.call("StopUnit", "ss", [name, "replace"])

    async def stop_volume(self, volume_id: str) -> None:
        """Stop zfsilo-volume@NAME, if it is active, because its volume is down."""
        with contextlib.suppress(Unavailable):
            await self.call("StopUnit", "ss", [f"zfsilo-volume@{volume_id}.service", "fail"])

    async def running(self) -> set[str]:
        """Return the names (Operation.unit) of live units.

        A unit with a queued job counts as live although it is still inactive: systemd answers its
        bus first and runs its jobs later.
        """
        patterns = ["zfsilo-op-*.service", "zfsilo-rollback@*.service"]
        reply = await self.call("ListUnitsByPatterns", "asas", [[], patterns])
        live = (unit[0] for unit in reply.body[0] if unit[STATE] in LIVE_STATES or unit[JOB_ID])
        return {match[1] for match in map(UNIT.fullmatch, live) if match}

    async def is_shutting_down(self) -> bool:
        """Tell whether shutdown.target is active or queued."""
        message = Message(
            destination=SYSTEMD,
            path=MANAGER_PATH,
            interface="org.freedesktop.DBus.Properties",
            member="Get",
            signature="ss",
            body=[MANAGER, "SystemState"],
        )
        reply = await self._send(message, fatal=True)
        return bool(reply.body[0].value == "stopping")

    async def close(self) -> None:
        """Disconnect from the bus."""
        self._bus.disconnect()

    def _on_message(self, message: Message) -> None:
        if message.member == "JobRemoved" and message.interface == MANAGER and self._hint:
            match = UNIT.fullmatch(message.body[2])
            if match:
                self._hint(match[1])

    async def call(
        self,
        member: str,
        signature: str = "",
        body: list[Any] | None = None,
        *,
        fatal: bool = True,
        descriptors: Sequence[int] = (),
    ) -> Message:
        """Call a method of systemd's manager.

        Raises InvalidArgument for a text that no message can have, and Unavailable when the call
        fails, if `fatal`.
        """
        copies = [os.dup(descriptor) for descriptor in descriptors]
        message = Message(
            destination=SYSTEMD,
            path=MANAGER_PATH,
            interface=MANAGER,
            member=member,
            signature=signature,
            body=body or [],
            unix_fds=copies,
        )
        try:
            return await self._send(message, fatal=fatal)
        finally:
            if copies:
                close_when_sent(self._bus, copies)

    async def _send(self, message: Message, *, fatal: bool) -> Message:
        check_texts(message.body)
        try:
            async with asyncio.timeout(CALL_DEADLINE_S):
                reply = await self._bus.call(message)
        except TimeoutError:
            raise Unavailable(f"systemd did not answer {message.member}") from None
        assert reply is not None
        if fatal and reply.message_type == MessageType.ERROR:
            text = reply.body[0] if reply.body else reply.error_name
            raise Unavailable(f"systemd refused {message.member}: {text}")
        return reply


class LocalLauncher:
    """Starts workers as child processes: for --simulate, on any machine, without systemd."""

    def __init__(self, state: Path) -> None:
        self._state = state
        # An installed zfsilod is outside the default module path; only its scripts know where.
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._hint: Hint | None = None
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._readers: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def listen(self, hint: Hint) -> None:
        """Set the hint that is called when the processes of a unit have ended."""
        self._hint = hint

    async def start(self, operation: Operation, *_others: Operation) -> None:
        """Start a worker that runs the operation; if it fails, start one that rolls it back."""
        self._follow(operation.unit, "run", "rollback")

    async def rollback(self, operation: Operation) -> None:
        """Start a worker that rolls the operation back, unless one runs already."""
        if operation.unit not in self._tasks:
            self._follow(operation.unit, "rollback")

    async def stop(self, operation: Operation) -> None:
        """Terminate the operation's worker; the rollback follows."""
        process = self._processes.get(operation.unit)
        if process is not None and process.returncode is None:
            process.terminate()

    async def start_reader(self, ticket: str, words: tuple[str, ...], _title: str) -> None:
        """Start a process that reads the blocks of a snapshot, and sends them with its ticket."""
        self._readers[ticket] = await self._spawn("blocks", ticket, *words)

    async def stop_reader(self, ticket: str) -> None:
        """Terminate a reader, if it still runs, and wait for its end."""
        process = self._readers.pop(ticket, None)
        if process is not None:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def start_sender(self, ticket: str, words: tuple[str, ...], _title: str) -> None:
        """Start a process that runs zfs send, for the stream with this ticket."""
        self._readers[f"{ticket} send"] = await self._spawn("send", ticket, *words)

    async def start_dialer(self, ticket: str, control: int, _title: str) -> None:
        """Start a process that carries a stream to a peer; `control` is its standard input."""
        self._readers[f"{ticket} dial"] = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "zfsilod.gateway.main",
            "dial",
            stdin=control,
            env=self._environment,
        )

    async def stop_stream(self, ticket: str) -> None:
        """Terminate the processes of a stream, if they still run, and wait for their end."""
        for name in ("dial", "send"):
            await self.stop_reader(f"{ticket} {name}")

    async def running(self) -> set[str]:
        """Return the names (Operation.unit) of units that have a worker."""
        return set(self._tasks)

    async def close(self) -> None:
        """Wait for the end of all workers."""
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def _follow(self, unit: str, *commands: str) -> None:
        def ended(_task: object) -> None:
            del self._tasks[unit]
            self._processes.pop(unit, None)
            if self._hint is not None:
                self._hint(unit)

        task = asyncio.get_running_loop().create_task(self._work(unit, commands))
        self._tasks[unit] = task
        task.add_done_callback(ended)

    async def _work(self, unit: str, commands: tuple[str, ...]) -> None:
        """Start a worker for one command after the other, until one succeeds."""
        for command in commands:
            process = await self._spawn(command, unit)
            self._processes[unit] = process
            if await process.wait() == 0:
                return

    async def _spawn(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "zfsilod.engine.worker",
            "--state",
            self._state,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            env=self._environment,
        )

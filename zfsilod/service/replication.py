"""Sends snapshots to peers: starts the processes of a stream, and follows them to the end.

Two processes carry a stream: a sender, which runs `zfs send`, and one without privileges that has
the connection to the peer. They are joined by a pair of sockets, so the bytes do not pass the
daemon. A stream that is cut off goes on where the peer's pool says, for some attempts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilod.engine.frames import DONE, FAILED, HEAD, error_in
from zfsilod.engine.stream_sender import SIZE
from zfsilod.gateway import packets
from zfsilod.gateway.sockets import receive_exactly
from zfsilod.model.errors import (
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    ZfsiloError,
    cancelled,
)
from zfsilod.model.record import Record
from zfsilod.model.records import Operation, Snapshot
from zfsilod.model.replica import SendJob
from zfsilod.model.ulid import new_ulid
from zfsilod.requests.clones import volume_of
from zfsilod.requests.volumes import need_primary
from zfsilod.service.stream_rates import RateTeller, StreamRates

if TYPE_CHECKING:
    from zfsilod.engine.steps.replica import Sent
    from zfsilod.model.replica import ReplicaFacts
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Launcher
    from zfsilod.service.stream_socket import StreamSocket

ATTEMPTS_PAUSE_S = (1.0, 3.0, 10.0, 30.0)  # between the attempts of one operation
MOST_ATTEMPTS = 100  # of one operation; the next one goes on there
LOOK_S = 1.0  # between two looks whether the operation still wants its stream
START_S = 60.0
FRAME_BYTES = 1 << 16
MOST_BYTES = 1 << 63
MAX_WHY = 512  # characters
SECRETS = ("authority", "certificate", "key", "token")  # no larger than a packet may be
CUT = ("STREAM_CUT", "SERVER_UNAVAILABLE", "CONNECTION_REFUSED", "STOPPED", "CLAIMED")
PROBLEMS: dict[str, type[ZfsiloError]] = {"NO_SPACE": ResourceExhausted}

log = logging.getLogger(__name__)


class Transfer(Record):
    """How far the stream of an operation is."""

    sent_bytes: int = 0
    total_bytes: int = 0  # about; 0: not known yet
    rate: int = 0  # bytes a second, since the start


class _Attempts:
    """Counts the attempts of an operation: from the first again when the peer has more than before.

    What was sent does not count: the peer may have lost it, or say so.
    """

    def __init__(self) -> None:
        self._tries = 0
        self._all = 1
        self._had: tuple[str, str] | None = None

    def saw(self, there: ReplicaFacts) -> None:
        """Note what the peer has before an attempt."""
        has = there.guid, there.token
        if self._had not in (None, has):
            self._tries = 0
        self._had = has

    @property
    def are_over(self) -> bool:
        """Whether the attempt that failed was the last one."""
        return self._tries >= len(ATTEMPTS_PAUSE_S) or self._all >= MOST_ATTEMPTS

    def pause_s(self) -> float:
        """Count one more attempt, and return how long to wait before it."""
        self._tries += 1
        self._all += 1
        return ATTEMPTS_PAUSE_S[self._tries - 1]


class Replicator:
    """Performs the steps Sent of operations."""

    def __init__(self, context: ServiceContext, launcher: Launcher, streams: StreamSocket) -> None:
        self._context = context
        self._launcher = launcher
        self._streams = streams
        self.transfers: dict[str, Transfer] = {}  # by operation
        self._sends: set[asyncio.Task[Any]] = set()
        self._rates = StreamRates()
        self._is_closed = False

    async def close(self) -> None:
        """End the streams, and begin no other: the next daemon goes on with their operations.

        systemd ends their units with zfsilod, so another attempt would wait for the next one.
        """
        self._is_closed = True
        for task in self._sends:
            task.cancel()
        if self._sends:
            await asyncio.wait(self._sends)

    async def send(self, step: Sent, operation: Operation) -> None:
        """Send a snapshot, in some attempts. Raises ZfsiloError, and Busy when it was cancelled."""
        task = asyncio.current_task()
        if self._is_closed or task is None:
            raise cancelled()
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)
        with self._rates.counted(step):
            await self._send(step, operation)

    async def _send(self, step: Sent, operation: Operation) -> None:
        attempts = _Attempts()
        try:
            while True:
                try:
                    await self._attempt(step, operation, attempts)
                    return
                except ZfsiloError as error:
                    if error.reason not in CUT or attempts.are_over:
                        raise
                    log.warning("%s: %s", operation.title, error.message)
                self.transfers.pop(operation.id, None)
                await self._context.pause(attempts.pause_s())
                self._check_wanted(operation)
        finally:
            self.transfers.pop(operation.id, None)

    async def _attempt(self, step: Sent, operation: Operation, attempts: _Attempts) -> None:
        with self._context.read() as txn:
            snapshot = txn.get(Snapshot, step.snapshot)
            volume = volume_of(txn, snapshot) if snapshot is not None else None
            need_primary(txn, step.volume)
        if snapshot is None or volume is None:
            raise FailedPrecondition(
                f"snapshot {step.snapshot} was deleted: replicate again", reason="LOST"
            )
        servers = self._context.servers
        there = await servers.replica(step.server, step.volume, volume.uid, wait=True)
        attempts.saw(there)
        if there.guid == snapshot.guid:
            return
        if there.guid != step.base_guid:
            raise FailedPrecondition(
                f"{step.server} has another snapshot of {step.volume} than before: replicate again",
                reason="NO_COMMON_SNAPSHOT",
                volume=step.volume,
                server=step.server,
            )
        job = SendJob(
            dataset=volume.dataset,
            volume_uid=volume.uid,
            uid=snapshot.uid,
            guid=snapshot.guid,
            base_uid=step.base_uid,
            base_guid=step.base_guid,
            raw="raw" if step.raw else "",
            token=there.token,
        )
        offer = servers.offer(snapshot, step.base_guid, raw=step.raw, attempt=new_ulid())
        try:
            await self._carry(step, operation, job, offer)
        except OSError as error:  # of a socket to one of the processes
            raise _cut(error.strerror or type(error).__name__) from None
        there = await servers.replica(step.server, step.volume, volume.uid, wait=True)
        if there.guid != snapshot.guid:
            raise _failed(step, there)

    async def _carry(self, step: Sent, operation: Operation, job: SendJob, body: str) -> None:
        """Run the two processes of one stream to their end."""
        ticket = new_ulid()
        ends = socket.socketpair()
        control, dialer_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.settimeout(0)
        sender = self._streams.expect_reports(ticket, _giving(ends[0]))
        tasks: list[asyncio.Task[None]] = []
        try:
            with ends[1], dialer_end:
                teller = RateTeller(partial(self._rate, step, operation, job), control)
                self._instruct(step, control, ends[1], body, teller.told)
                await self._launcher.start_dialer(ticket, dialer_end.fileno(), step.fact())
            await self._launcher.start_sender(ticket, job.words, operation.title)
            began = time.monotonic()
            loop = asyncio.get_running_loop()
            tasks = [
                loop.create_task(self._follow_dialer(step.server, operation.id, control, began)),
                loop.create_task(self._follow_sender(operation.id, sender)),
            ]
            await self._until_ended(operation, tasks, teller)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._streams.forget(ticket)
            if not sender.cancel() and not sender.cancelled():
                sender.result().close()  # it may have come when nothing waited for it any more
            ends[0].close()
            control.close()
            await self._launcher.stop_stream(ticket)

    def _instruct(
        self, step: Sent, control: socket.socket, stream: socket.socket, body: str, rate: int
    ) -> None:
        """Tell the process with the connection where to, with what, and hand it the stream."""
        access: packets.Packet = {**self._context.servers.access(step.server)}
        secrets = packets.to_file({name: access.pop(name) for name in SECRETS})
        opening = access | {
            "path": f"/v1/volumes/{step.volume}:receive",
            "body": body,
            "rate": rate,
        }
        try:
            packets.send(control, opening, secrets)
        finally:
            os.close(secrets)
        packets.send(control, {"tell": "stream"}, stream.fileno())

    def _rate(self, step: Sent, operation: Operation, job: SendJob) -> int:
        with self._context.read() as txn:
            return self._rates.rate(txn, step, operation, job.volume_uid)

    async def _until_ended(
        self, operation: Operation, tasks: list[asyncio.Task[None]], teller: RateTeller
    ) -> None:
        """Wait for both processes. The connection's error tells more than the one of `zfs send`."""
        dialer, sender = tasks
        while not dialer.done():
            await asyncio.wait({dialer}, timeout=LOOK_S)
            self._check_wanted(operation)
            teller.keep()
            if sender.done() and sender.exception() is not None and not dialer.done():
                await asyncio.wait({dialer}, timeout=LOOK_S)
                break
        if dialer.done():
            dialer.result()
        await sender

    async def _follow_dialer(
        self, server: str, operation_id: str, control: socket.socket, began: float
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            raw = await loop.sock_recv(control, packets.PACKET_BYTES)
            await asyncio.sleep(0)  # sock_recv does not wait for what is there: others have a turn
            if not raw:
                raise _cut("the connection to the peer: its process stopped")
            try:
                told = packets.parse(raw)
            except ValueError as error:
                raise _cut(f"the connection to the peer: {error}") from None
            match told:  # of a process that reads what the peer sends
                case {"tell": "opened"}:
                    pass
                case {"tell": "sent", "bytes": int(sent)} if 0 <= sent < MOST_BYTES:
                    self.note(operation_id, sent, began)
                case {"tell": "refused", "status": int(status), "body": str(body)}:
                    raise self._context.servers.refusal(server, body, status)
                case {"tell": "ended", "why": ""}:
                    return
                case {"tell": "ended", "why": str(why)}:
                    raise _cut(f"the connection to the peer: {why[:MAX_WHY]}")
                case _:
                    raise _cut("the connection to the peer: its process tells nonsense")

    async def _follow_sender(self, operation_id: str, taken: asyncio.Future[socket.socket]) -> None:
        try:
            async with asyncio.timeout(START_S):
                link = await taken
        except TimeoutError:
            raise _cut("the process that runs zfs send did not start") from None
        with link:
            while True:
                try:
                    kind, size = HEAD.unpack(await receive_exactly(link, HEAD.size))
                    content = await receive_exactly(link, min(size, FRAME_BYTES))
                except EOFError:
                    raise _cut("the process that runs zfs send was stopped") from None
                if kind == DONE:
                    return
                if kind == FAILED:
                    raise error_in(content)
                if kind == SIZE:
                    known = self.transfers.get(operation_id, Transfer())
                    self.transfers[operation_id] = known.but(total_bytes=int(content))

    def note(self, operation_id: str, sent: int, began: float) -> None:
        """Remember how far a stream is, which began at this time.monotonic()."""
        known = self.transfers.get(operation_id, Transfer())
        rate = int(sent / max(0.001, time.monotonic() - began))
        self.transfers[operation_id] = known.but(sent_bytes=sent, rate=rate)

    def _check_wanted(self, operation: Operation) -> None:
        """Raise Busy when the operation was cancelled or rolled back meanwhile."""
        with self._context.read() as txn:
            stored = txn.get(Operation, operation.id)
            stopped = txn.is_cancelled(operation.id)
        if stored is None or stored.revision != operation.revision or stopped:
            raise cancelled()


def _giving(stream: socket.socket) -> Any:
    async def give() -> int:
        return stream.detach()  # the stream ends with the process that has it

    return give


def _cut(why: str) -> Unavailable:
    return Unavailable(
        f"the stream was cut off: {why}; what the peer has received is kept, replicate again to "
        "go on",
        reason="STREAM_CUT",
    )


def _failed(step: Sent, there: ReplicaFacts) -> ZfsiloError:
    """Return the error for a stream that was sent, and is not whole on the peer."""
    why = there.problem or "it was stopped"
    if there.reason in CUT or not there.problem:
        return _cut(f"{step.server}: {why}")
    kind = PROBLEMS.get(there.reason, FailedPrecondition)
    return kind(f"{step.server}: {why}", reason=there.reason, server=step.server)

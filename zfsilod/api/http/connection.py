"""One connection of HTTP/1.1: reads requests one after the other, within bounds of size and time.

h11 parses and frames; it does no input or output. The next request is read when the response to
the one before it is sent, so that a client buffers its requests itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import h11

from zfsilod.api.http.refusals import MAX_BODY_BYTES, bad_http, too_large
from zfsilod.service.block_reader import TAKE_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    Answer = Callable[["HttpConnection", h11.Request], Awaitable[None]]

READ_BYTES, BODY_READ_BYTES = 4096, 65536
NO_CONTENT = 204
VERSIONS = (b"1.0", b"1.1")
HEAD_BYTES = 16 << 10  # of the line and headers of a request, as metadata of gRPC
HEAD_S = 10.0  # for the head of the first request, and of one that has begun
IDLE_S = 60.0  # between two requests
WRITE_S = 30.0  # for the client to take a response
LINE_S = TAKE_S  # for the client to take one line of a response that has many
CLOSING_S = 1.0  # for the client to read the answer to what is not HTTP

Headers = list[tuple[str, str]]

log = logging.getLogger(__name__)


class HttpConnection:
    """The stream of a client, and the state of its protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # Sent means received by the kernel: the rest would be lost with this process, or when the
        # connection is closed.
        writer.transport.set_write_buffer_limits(high=0)
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._received = asyncio.Event()  # the whole request
        self.peer = str(writer.get_extra_info("peername"))
        self._head_only = False  # the response has no body
        self.busy = False  # with a request
        self.closing = False  # after the response: the server stops
        self.carry_stream: Callable[[], None] = lambda: None  # called before a stream begins

    async def serve(self, answer: Answer) -> None:
        """Answer requests until either side ends the connection."""
        try:
            wait_s = HEAD_S
            while (request := await self._request(wait_s)) is not None:
                self.busy = True
                await answer(self, request)
                self.busy = False
                if self.closing or not self._next_cycle():
                    await self._linger()
                    return
                wait_s = IDLE_S
        except h11.RemoteProtocolError as error:
            with suppress(OSError, TimeoutError):
                await self._refuse_protocol(error)
        except (OSError, TimeoutError, h11.LocalProtocolError):
            pass  # the client is gone, silent, or does not read
        finally:
            self._writer.close()

    def close(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    async def body(self) -> bytes:
        """Return the body of the request. Raises ResourceExhausted and InvalidArgument."""
        parts, size = [], 0
        while True:
            try:
                event = self._protocol.next_event()
            except h11.RemoteProtocolError as error:
                raise bad_http(str(error)) from None
            if event is h11.NEED_DATA:
                await self._receive(BODY_READ_BYTES)
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                size += len(event.data)
                if size > MAX_BODY_BYTES:
                    raise too_large()
            elif isinstance(event, h11.EndOfMessage):
                self._received.set()
                return b"".join(parts)
            else:
                raise ConnectionAbortedError("the client ended the connection")

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work that ends with the connection. Raises ConnectionAbortedError."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ConnectionAbortedError("the client ended the connection")
            task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.wait({task, gone})

    async def hand_over(self, protocol: str) -> int:
        """Answer that the connection changes to another protocol, and return its descriptor.

        The connection ends here, and goes on where the descriptor is used. Raises
        ConnectionAbortedError when the client has sent something before the answer.
        """
        transport: Any = self._writer.transport
        transport.pause_reading()
        if self._protocol.trailing_data[0]:
            raise ConnectionAbortedError("the client did not wait for the answer")
        self.carry_stream()
        headers = [("connection", "upgrade"), ("upgrade", protocol)]
        self._send(h11.InformationalResponse(status_code=101, headers=headers))
        await self._drain(WRITE_S)
        descriptor = os.dup(self._writer.get_extra_info("socket").fileno())
        transport.abort()
        os.set_blocking(descriptor, True)
        return descriptor

    async def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole response."""
        if self._protocol.our_state is not h11.SEND_RESPONSE and (
            self._protocol.our_state is not h11.IDLE
        ):
            raise ConnectionAbortedError("a response has begun")
        self._drop_body()
        if self._protocol.their_state is not h11.DONE or self.closing:
            headers = [*headers, ("connection", "close")]
        if status != NO_CONTENT:
            headers = [*headers, ("content-length", str(len(body)))]
        self._send(h11.Response(status_code=status, headers=headers))
        if body and not self._head_only:
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        await self._drain(WRITE_S)

    async def begin(self, headers: Headers) -> None:
        """Send the head of a response that has lines, each when it is there."""
        self._send(h11.Response(status_code=200, headers=headers))
        await self._drain(LINE_S)

    async def line(self, data: bytes) -> None:
        """Send a line of a response that has begun."""
        self._send(h11.Data(data=data))
        await self._drain(LINE_S)

    async def end(self) -> None:
        """End a response that has begun: the last chunk tells the client that it has all lines."""
        self._send(h11.EndOfMessage())
        await self._drain(LINE_S)

    def _drop_body(self) -> None:
        """Drop what has come of a body that nobody has read; more of it is not awaited."""
        with suppress(h11.RemoteProtocolError):
            while self._protocol.their_state is h11.SEND_BODY:
                if self._protocol.next_event() is h11.NEED_DATA:
                    return

    async def _request(self, wait_s: float) -> h11.Request | None:
        """Return the head of the next request; None: the client has ended the connection."""
        self._received.clear()
        begun = bool(self._protocol.trailing_data[0])
        async with asyncio.timeout(HEAD_S if begun else wait_s) as deadline:
            while (event := self._protocol.next_event()) is h11.NEED_DATA:
                if await self._receive() and not begun:
                    begun = True
                    deadline.reschedule(asyncio.get_running_loop().time() + HEAD_S)
        if not isinstance(event, h11.Request):
            return None
        if event.http_version not in VERSIONS:
            raise h11.RemoteProtocolError("not HTTP/1.1", error_status_hint=505)
        self._head_only = event.method == b"HEAD"
        return event

    async def _receive(self, most: int = READ_BYTES) -> bool:
        """Receive more, and tell whether there was any."""
        if self._protocol.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))
        data = await self._reader.read(most)
        self._protocol.receive_data(data)
        return bool(data)

    async def _gone(self) -> None:
        """Return when the client ends the connection; what else it sends, is kept.

        A client that only says that it sends nothing more, as `nc -N` does, waits for the response.
        """
        await self._received.wait()
        if data := await self._reader.read(READ_BYTES):
            self._protocol.receive_data(data)
            await asyncio.get_running_loop().create_future()  # more is not read until the response
        await _hung_up(self._writer.get_extra_info("socket").fileno())

    def _next_cycle(self) -> bool:
        if (self._protocol.our_state, self._protocol.their_state) != (h11.DONE, h11.DONE):
            return False
        self._protocol.start_next_cycle()
        return True

    async def _refuse_protocol(self, error: h11.RemoteProtocolError) -> None:
        """Answer what is not HTTP, and let the client read it."""
        if self._protocol.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        from zfsilod.api.http.response import refusal

        self.closing = True
        status, headers, body = refusal(bad_http(str(error)), error.error_status_hint)
        await self.respond(status, headers, body)
        await self._linger()

    async def _linger(self) -> None:
        """Let the client read the response: what it still sends would reset the connection."""
        self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                while await self._reader.read(READ_BYTES):
                    pass

    def _send(self, event: Any) -> None:
        if data := self._protocol.send(event):
            self._writer.write(data)

    async def _drain(self, wait_s: float) -> None:
        """Wait for the client. Raises ConnectionAbortedError: that is no deadline of its call."""
        try:
            async with asyncio.timeout(wait_s):
                await self._writer.drain()
        except TimeoutError:
            why = f"the client has not read for {wait_s:g} s"
            log.info("closed a connection of %s: %s", self.peer, why)
            raise ConnectionAbortedError(why) from None


async def _hung_up(descriptor: int) -> None:
    """Return when the other side has ended both directions of a unix connection: unix(7).

    The event loop does not tell it of a connection at whose end it reads nothing.
    """
    loop, hung_up = asyncio.get_running_loop(), asyncio.Event()
    with select.epoll() as poll:
        poll.register(descriptor, 0)  # a hangup is told always
        loop.add_reader(poll, hung_up.set)
        try:
            await hung_up.wait()
        finally:
            loop.remove_reader(poll)

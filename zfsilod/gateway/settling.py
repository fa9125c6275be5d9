"""Holds the calls of a connection back until its client has acknowledged the daemon's settings.

gRPC bounds the headers of a call by the settings that the client has acknowledged. Before, 15 kB
that name one entry of the table again and again become 4,000 headers of 16 MiB together. So the
headers of the first call are bounded here, and further calls wait. RFC 9113, section 6.5.3: a
client acknowledges settings as soon as it has received them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.gateway.frames import CONTINUATION, HEADERS
from zfsilod.gateway.opening import ACK, MAX_BYTES, SETTINGS, Headers, WholeFrames
from zfsilod.gateway.relay import PlainEnd

if TYPE_CHECKING:
    import socket


class Settling:
    """The beginning of what a client sends, in frames."""

    def __init__(self) -> None:
        self.offered = False  # the daemon has sent its settings
        self.settled = False  # the client has acknowledged them
        self._frames = WholeFrames()
        self._held = bytearray()  # from the second call on
        self._first = Headers()

    def take(self, data: bytes) -> bytes:
        """Return what may go to the daemon.

        Raises ConnectionAbortedError for too much data, and for settings that are acknowledged
        before they were sent.
        """
        frames = self._frames
        frames.rest += data
        passed = frames.preface()
        while not self.settled and (whole := frames.frame()):
            if whole[3] == SETTINGS and whole[4] & ACK:
                if not self.offered:
                    raise ConnectionAbortedError("it acknowledged settings that were not sent")
                self.settled = True
                passed += whole + bytes(self._held) + frames.all()
                self._held.clear()
            elif self._held or self._is_further_call(whole):
                self._held += whole
            else:
                passed += whole
        if len(self._held) + len(frames.rest) > MAX_BYTES:
            raise ConnectionAbortedError("too much data before it acknowledged the settings")
        return passed

    def _is_further_call(self, whole: bytes) -> bool:
        if whole[3] not in (HEADERS, CONTINUATION):
            return False
        if self._first.decoded is not None:
            return True
        self._first.take(whole)
        return False


class DaemonEnd(PlainEnd):
    """The daemon's end of a connection."""

    def __init__(self, own: socket.socket) -> None:
        super().__init__(own)
        self._settling: Settling | None = Settling()

    def receive(self) -> bytes | None:
        """Return the next bytes of the daemon; see PlainEnd."""
        data = super().receive()
        if data and self._settling is not None:
            self._settling.offered = True  # they begin with the settings
        return data

    def send(self, data: bytes) -> bool:
        """Send bytes of the client, or hold them back; see PlainEnd."""
        settling = self._settling
        if settling is not None:
            data = settling.take(data)
            if settling.settled:
                self._settling = None
            if not data:
                return not self.rest
        return super().send(data)

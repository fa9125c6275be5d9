"""Accepts connections on listening sockets, in bounded turns of the loop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

ACCEPT_AT_ONCE = 16
ACCEPT_PAUSE_S = 1  # when the process has no descriptors left

log = logging.getLogger(__name__)


class Acceptor:
    """One listening socket, which is closed with it."""

    def __init__(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        listener.settimeout(0)
        self._listener = listener
        self._accepted = accepted
        self._open = True
        self._resume()

    def close(self) -> None:
        """Close the listener; accepted connections continue."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()

    def _resume(self) -> None:
        if self._open:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _attempt in range(ACCEPT_AT_ONCE):
            try:
                client, _address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.error("cannot accept connections, retrying in %d s: %s", ACCEPT_PAUSE_S, error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            self._accepted(client)

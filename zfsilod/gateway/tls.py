"""TLS handshake on a non-blocking socket, with a deadline."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

HANDSHAKE_S = 10  # from accept(2) to the end of the handshake

log = logging.getLogger(__name__)


class TlsHandshake:
    """The server's side of a handshake; it ends with the secured socket, or None."""

    def __init__(
        self,
        client: socket.socket,
        context: ssl.SSLContext,
        ended: Callable[[ssl.SSLSocket | None], None],
    ) -> None:
        client.settimeout(0)
        self._loop = asyncio.get_running_loop()
        self._socket = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        self._ended = ended
        self._descriptor = self._socket.fileno()
        self._deadline = self._loop.call_later(HANDSHAKE_S, self.close)

    def step(self) -> None:
        """Continue the handshake as far as the received bytes allow."""
        self._stop_waiting()
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.add_reader(self._descriptor, self.step)
        except ssl.SSLWantWriteError:
            self._loop.add_writer(self._descriptor, self.step)
        except OSError as error:  # not TLS, an old version, or an unknown authority
            log.info("TLS handshake failed: %s", error)
            self.close()
        else:
            self._deadline.cancel()
            self._ended(self._socket)

    def close(self) -> None:
        """End the handshake without success."""
        self._stop_waiting()
        self._deadline.cancel()
        self._socket.close()
        self._ended(None)

    def _stop_waiting(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)

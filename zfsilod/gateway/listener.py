"""The front door: takes connections on systemd's sockets and pumps them to grpc's private one.

grpc for Python cannot serve on an inherited socket. So we accept, note who is there (the user of a
unix peer; address and certificate of a TCP peer, once TLS is through), and connect to grpc from a
socket bound to an abstract name that we make up and remember: that name is what grpc tells a
servicer about its peer, and `peer` gives back who it stands for. The private socket lies in a
directory that only we can enter. Of the unix listeners one is for nodes: whoever comes in there is
one, whatever their user.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import ssl
from collections import Counter
from typing import TYPE_CHECKING

from zfsilod.gateway.relay import Connection
from zfsilod.gateway.sockets import peer_of
from zfsilod.model.errors import Unauthenticated
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zfsilod.model.identity import Peer, PeerKind
    from zfsilod.security.tls import ServerTls

ACCEPT_AT_ONCE = 16
ACCEPT_PAUSE_S = 1  # when the process has no descriptors left
HANDSHAKE_S = 10  # from the first byte or none of them to the end of TLS's greetings
FAREWELL_S = 0.2  # for the answer that says why
NODE_SOCKET = "zfsilod-csi.socket"  # what systemd calls the descriptors of that unit

log = logging.getLogger(__name__)


class Limits(Record):
    """How many connections are let in; further ones are closed at once."""

    unix: int = 256
    node: int = 256
    tcp: int = 256
    each: int = 64  # of one address or user, root excepted


class Door:
    """Listeners, the connections that came in through them, and their tags."""

    def __init__(
        self, directory: Path, limits: Limits | None = None, tls: ServerTls | None = None
    ) -> None:
        """Use a directory of our own for the private socket; it is made, or made private.

        Without `tls`, and as long as that has no certificate, nobody comes in by TCP.
        """
        self.limits = limits or Limits()
        self.plain = directory / "plain.sock"
        self._tls = tls
        self._greetings: set[Greeting] = set()
        self._instance = secrets.token_hex(8)
        self._count = 0
        self._listeners: dict[socket.socket, PeerKind] = {}
        self._connections: dict[str, Connection] = {}
        self._held: Counter[str] = Counter()
        _make_private(directory)

    def open(self, listener: socket.socket, *, node: bool = False) -> None:
        """Take connections of a listening socket from now on; it is closed with the door."""
        kind: PeerKind = "tcp"
        if listener.family == socket.AF_UNIX:
            kind = "node" if node else "unix"
        listener.settimeout(0)
        self._listeners[listener] = kind
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, kind)

    def shut(self) -> None:
        """Take no more connections; those that are in go on. The listeners are closed."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        """Shut the door and drop every connection."""
        self.shut()
        for greeting in list(self._greetings):
            greeting.close()
        for connection in list(self._connections.values()):
            connection.close()

    def peer(self, name: str) -> Peer | None:
        """Return who is behind a peer as grpc names it; None: it did not come in through us."""
        found = self._connections.get(name.removeprefix("unix-abstract:"))
        return found.peer if found else None

    @property
    def connections(self) -> int:
        """How many connections are in, or at the door."""
        return len(self._connections) + len(self._greetings)

    def turn_out(self, name: str) -> None:
        """Drop a connection whose identity is worth nothing any more; its answer goes first."""
        found = self._connections.get(name.removeprefix("unix-abstract:"))
        if found is not None:
            asyncio.get_running_loop().call_later(FAREWELL_S, found.close)

    def _accept(self, listener: socket.socket, kind: PeerKind) -> None:
        for _each in range(ACCEPT_AT_ONCE):
            try:
                client, _address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.error("no connection can be taken for %d s: %s", ACCEPT_PAUSE_S, error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(ACCEPT_PAUSE_S, self._listen_again, listener, kind)
                return
            self._let_in(client, kind)

    def _listen_again(self, listener: socket.socket, kind: PeerKind) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener, kind)

    def _let_in(self, client: socket.socket, kind: PeerKind) -> None:
        try:
            peer = peer_of(client, kind)
            if self._is_full(peer):
                log.warning("too many connections: one of %s is closed", peer.quota_key)
                client.close()
                return
            if kind == "tcp":
                self._greet(peer, client)
            else:
                self._connect(peer, client)
        except OSError as error:  # the peer is gone again, or grpc does not take it
            log.warning("a %s connection is dropped: %s", kind, error)
            client.close()

    def _greet(self, peer: Peer, client: socket.socket) -> None:
        """Let a TCP peer show who it is, before anything of it reaches grpc."""
        context = self._tls.context() if self._tls else None
        if context is None:
            log.warning("%s is refused: there is no certificate (zfsiloctl pki init)", peer.address)
            client.close()
            return

        def ended(secured: ssl.SSLSocket | None) -> None:
            self._greetings.discard(greeting)
            self._count_out(peer)
            if secured is not None:
                self._welcome(peer, secured)

        self._held[peer.quota_key] += 1
        greeting = Greeting(client, context, ended)
        self._greetings.add(greeting)
        greeting.step()

    def _welcome(self, peer: Peer, secured: ssl.SSLSocket) -> None:
        der = secured.getpeercert(binary_form=True)
        try:
            assert self._tls is not None
            certified = self._tls.identify(der) if der else None
            self._connect(peer.but(certificate=certified), secured)
        except Unauthenticated as error:
            log.warning("%s is refused: %s", peer.address, error.message)
            secured.close()
        except OSError as error:
            log.warning("a connection of %s is dropped: %s", peer.address, error)
            secured.close()

    def _connect(self, peer: Peer, client: socket.socket) -> None:
        tag, server = self._reach()
        self._held[peer.quota_key] += 1
        self._connections[tag] = Connection(
            peer, client, server, closed=lambda: self._let_out(tag, peer)
        )

    def _let_out(self, tag: str, peer: Peer) -> None:
        del self._connections[tag]
        self._count_out(peer)

    def _count_out(self, peer: Peer) -> None:
        self._held[peer.quota_key] -= 1
        self._held += Counter()  # forgets who is at zero

    def _is_full(self, peer: Peer) -> bool:
        if peer.uid != 0 and self._held[peer.quota_key] >= self.limits.each:
            return True
        held = sum(each.peer.kind == peer.kind for each in self._connections.values())
        if peer.kind == "tcp":
            held += len(self._greetings)
        return held >= int(getattr(self.limits, peer.kind))

    def _reach(self) -> tuple[str, socket.socket]:
        """Connect to grpc under a new tag. A local connection is made at once, or not at all."""
        self._count += 1
        tag = f"zfsilo/{self._instance}/{self._count}"
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.settimeout(0)
            server.bind(f"\0{tag}")
            server.connect(os.fspath(self.plain))
        except OSError:
            server.close()
            raise
        return tag, server


class Greeting:
    """The beginning of TLS with a client: it ends with the secured socket, or None."""

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
        """Go on with the handshake as far as it goes now."""
        self._look_away()
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.add_reader(self._descriptor, self.step)
        except ssl.SSLWantWriteError:
            self._loop.add_writer(self._descriptor, self.step)
        except OSError as error:  # no TLS, an old one, a certificate of somebody unknown
            log.info("a TCP connection is refused: %s", error)
            self.close()
        else:
            self._deadline.cancel()
            self._ended(self._socket)

    def close(self) -> None:
        """Give up."""
        self._look_away()
        self._deadline.cancel()
        self._socket.close()
        self._ended(None)

    def _look_away(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    for stale in directory.glob("*.sock"):
        stale.unlink()

"""The front door: takes connections on systemd's sockets and pumps them to grpc's private one.

grpc for Python cannot serve on an inherited socket. So we accept, note who is there (the user of a
unix peer; address and certificate of a TCP peer, once TLS is through), and connect to grpc from a
socket bound to an abstract name that we make up and remember: that name is what grpc tells a
servicer about its peer, and `peer` gives back who it stands for. The private socket lies in a
directory that only we can enter. Of the unix listeners one is for nodes: whoever comes in there is
one, whatever their user.

A pump is two pipes over bare non-blocking sockets: asyncio's transports add twice the delay. A pipe
holds at most one chunk that its reader does not take, and reads on only when that is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import ssl
import stat
import struct
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from zfsilod.errors import FailedPrecondition, Unauthenticated
from zfsilod.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zfsilod.pki import Certified
    from zfsilod.tls import ServerTls

CHUNK_BYTES = 65536
BACKLOG = 128
ACCEPT_AT_ONCE = 16
ACCEPT_PAUSE_S = 1  # when the process has no descriptors left
HANDSHAKE_S = 10  # from the first byte or none of them to the end of TLS's greetings
FAREWELL_S = 0.2  # for the answer that says why
LINGER_S = 5  # how long one half of a connection outlives the other
SO_PEERGROUPS = 59  # socket(7); Python has no name for it
MAX_GROUPS = 256  # of a peer; Python reads no longer options
# What a socket says that has nothing to give or to take now. TLS may want the other direction.
NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Kind = Literal["unix", "node", "tcp"]
NODE_SOCKET = "zfsilod-csi.socket"  # what systemd calls the descriptors of that unit

log = logging.getLogger(__name__)


class Peer(Record):
    """Who is behind a connection."""

    kind: Kind
    address: str  # TCP: without the port; unix and node: "pid 17"
    uid: int = -1
    groups: tuple[int, ...] = ()
    certificate: Certified | None = None  # TCP: the one that TLS verified, if it showed one

    @property
    def who(self) -> str:
        """Whom the connections are counted for."""
        return self.address if self.kind == "tcp" else f"uid {self.uid}"


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
        self._listeners: dict[socket.socket, Kind] = {}
        self._connections: dict[str, Connection] = {}
        self._held: Counter[str] = Counter()
        _make_private(directory)

    def open(self, listener: socket.socket, *, node: bool = False) -> None:
        """Take connections of a listening socket from now on; it is closed with the door."""
        kind: Kind = "tcp"
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

    def _accept(self, listener: socket.socket, kind: Kind) -> None:
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

    def _listen_again(self, listener: socket.socket, kind: Kind) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener, kind)

    def _let_in(self, client: socket.socket, kind: Kind) -> None:
        try:
            peer = peer_of(client, kind)
            if self._is_full(peer):
                log.warning("too many connections: one of %s is closed", peer.who)
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

        self._held[peer.who] += 1
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
        self._held[peer.who] += 1
        self._connections[tag] = Connection(
            peer, client, server, closed=lambda: self._let_out(tag, peer)
        )

    def _let_out(self, tag: str, peer: Peer) -> None:
        del self._connections[tag]
        self._count_out(peer)

    def _count_out(self, peer: Peer) -> None:
        self._held[peer.who] -= 1
        self._held += Counter()  # forgets who is at zero

    def _is_full(self, peer: Peer) -> bool:
        if peer.uid != 0 and self._held[peer.who] >= self.limits.each:
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
        self, client: socket.socket, context: ssl.SSLContext,
        ended: Callable[[ssl.SSLSocket | None], None],
    ) -> None:  # fmt: skip
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


class Connection:
    """A client and grpc, joined by two pipes until both are at their ends."""

    def __init__(
        self, peer: Peer, client: socket.socket, server: socket.socket,
        *, closed: Callable[[], None],
    ) -> None:  # fmt: skip
        self.peer = peer
        self._sockets = (client, server)
        self._closed = closed
        self._open = True
        self._linger: asyncio.TimerHandle | None = None
        client.settimeout(0)
        self._pipes = (Pipe(client, server, self), Pipe(server, client, self))

    def pipe_ended(self) -> None:
        """One direction is at its end: the other one may finish, but not for long."""
        if all(pipe.ended for pipe in self._pipes):
            self.close()
        elif self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.close)

    def close(self) -> None:
        """Close both ends at once."""
        if not self._open:
            return
        self._open = False
        if self._linger is not None:
            self._linger.cancel()
        for pipe in self._pipes:
            pipe.stop()
        for each in self._sockets:
            each.close()
        self._closed()


class Pipe:
    """Carries bytes from one socket to another."""

    def __init__(self, source: socket.socket, sink: socket.socket, owner: Connection) -> None:
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._owner = owner
        self._rest = b""  # what the sink did not take yet; nothing is read meanwhile
        self._loop.add_reader(source, self._read)

    def stop(self) -> None:
        """Carry nothing more."""
        self._loop.remove_reader(self._source)
        if self._rest:
            self._loop.remove_writer(self._sink)

    def _read(self) -> None:
        try:
            data = self._source.recv(CHUNK_BYTES)
            if data:
                self._send(data)
            else:
                self._end()
        except NOT_NOW:
            return
        except OSError:
            self._owner.close()

    def _send(self, data: bytes) -> None:
        try:
            sent = self._sink.send(data)
        except NOT_NOW:
            sent = 0
        if sent < len(data):
            self._rest = data[sent:]
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._write)

    def _write(self) -> None:
        try:
            sent = self._sink.send(self._rest)
        except NOT_NOW:
            return
        except OSError:
            self._owner.close()
            return
        self._rest = self._rest[sent:]
        if not self._rest:
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._read)

    def _end(self) -> None:
        self.ended = True
        self._loop.remove_reader(self._source)
        if isinstance(self._sink, ssl.SSLSocket):
            with suppress(OSError):  # it says good-bye, and would wait for the same
                self._sink.unwrap()
        else:
            self._sink.shutdown(socket.SHUT_WR)
        self._owner.pipe_ended()


def inherited() -> list[tuple[socket.socket, str]]:
    """Return systemd's listening sockets, each with the name of its unit: sd_listen_fds(3)."""
    from systemd.daemon import listen_fds_with_names

    return [
        (socket.socket(fileno=descriptor), name)
        for descriptor, name in listen_fds_with_names().items()
    ]


def listen_unix(path: Path, *, mode: int = 0o660) -> socket.socket:
    """Make a listening unix socket, in place of one that nobody listens on any more."""
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(os.fspath(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener


def listen_tcp(host: str, port: int) -> socket.socket:
    """Make a listening TCP socket on an address; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def peer_of(client: socket.socket, kind: Kind) -> Peer:
    """Return who is at the other end of a connection. Raises OSError when nobody is any more."""
    if kind == "tcp":
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        address = str(client.getpeername()[0])
        return Peer(kind="tcp", address=address.removeprefix("::ffff:"))
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", raw)
    return Peer(kind=kind, address=f"pid {pid}", uid=uid, groups=(gid, *_groups(client)))


def _groups(client: socket.socket) -> tuple[int, ...]:
    """Return the supplementary groups of a unix peer; none when there are too many to read."""
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_GROUPS * 4)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    for stale in directory.glob("*.sock"):
        stale.unlink()


def _clear(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FailedPrecondition(f"{path} is no socket and in the way: remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FailedPrecondition(f"somebody listens on {path} already: stop the other zfsilod")

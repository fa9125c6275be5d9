"""Protocols of the records, the host and the servers that a request gathers its inputs from.

service/context.py and wire/storage_server.py implement them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from zfsilod.engine.steps.filesystem import Reported
    from zfsilod.host import HostAdapters
    from zfsilod.model.chap import Chap
    from zfsilod.model.connection import Connection
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.ownership import Ownership
    from zfsilod.model.records import Host, Publication, Snapshot, Volume
    from zfsilod.model.replica import ReplicaFacts
    from zfsilod.model.settings import Settings
    from zfsilod.model.words import Transport
    from zfsilod.requests.peers import PeerAnswer
    from zfsilod.storage.transaction import Transaction

T = TypeVar("T")
LOOK_DEADLINE_S = 20.0
INVENTORY_DEADLINE_S = 150.0
"""For one listing of a whole pool, which may hold many thousand volumes."""


class Servers(Protocol):
    """The servers that this host uses, called with this host's own identity.

    Each method raises the error that the server returned, or Unavailable.
    """

    async def fetch(self, server: str, volume: str) -> tuple[Connection, Chap]: ...
    async def publish(
        self,
        server: str,
        volume: str,
        *,
        client_operation: str,
        transport: Transport | Literal[""] = "",
        tls: bool = False,
    ) -> None: ...
    async def release(self, server: str, volume: str, *, client_operation: str) -> None: ...
    async def report(self, step: Reported, operation: str) -> None: ...
    async def usage(self, server: str, volume: str, *, timeout_s: float) -> dict[str, int]: ...
    async def register(self, server: str, host: Host, *, validate_only: bool = False) -> bool: ...
    def problem(self, server: str) -> str:
        """Return why a server does not accept this host, as a sentence; "": it did at last."""

    async def publications(self, server: str) -> list[Publication]: ...
    async def portals(self, server: str, transport: Transport, *, tls: bool) -> tuple[str, ...]:
        """Return the present portals of a server; () of one that does not name them."""

    async def replica(self, server: str, volume: str, uid: str, *, wait: bool) -> ReplicaFacts:
        """Return what a peer has of a volume; `wait`: when its running receive has ended."""

    def offer(
        self, volume: Volume, snapshot: Snapshot, base_guid: str, *, raw: bool, attempt: str
    ) -> str:
        """Return the request by which a peer receives a snapshot, as JSON."""

    def refusal(self, server: str, body: str, status: int) -> ZfsiloError:
        """Return the error in the response of HTTP by which a peer refused that request."""

    def access(self, server: str) -> dict[str, str]:
        """Return address, tls_name, authority, certificate, key and token for a server.

        Raises NotFound (NO_SERVER).
        """

    async def rotate(self, server: str, volume: str) -> None: ...


class Context(Protocol):
    """The records, the host and the servers, for requests and for the parts of the service."""

    settings: Settings
    machine: HostAdapters
    servers: Servers
    boot_id: str
    ownership: Ownership
    session_recovery_s: float  # after this time a broken session counts as lost
    promoting: dict[str, float]  # uids of volumes that may be promoted now, until time.monotonic()
    suspected: set[str]  # ids of volumes of which a peer may have been promoted

    def read(self) -> AbstractContextManager[Transaction]:
        """Open a read transaction: a consistent view that blocks no writer."""

    async def write(self, change: Callable[[Transaction], T]) -> T:
        """Run one write transaction in the store's thread. Raises Unavailable after a deadline."""

    async def look(self, question: Callable[[], T], timeout_s: float = LOOK_DEADLINE_S) -> T:
        """Read the host in a thread. Raises Unavailable when it does not answer in time."""

    async def ask_peers(self, volume: Volume, peers: Sequence[str]) -> tuple[PeerAnswer, ...]:
        """Ask other servers what they are for a volume; no answer is an answer too."""

    async def pause(self, seconds: float) -> None:
        """Wait before a fact that changes without an event is probed again."""

"""The context of the service: the store, the host, the servers and the settings of this daemon.

Writes to the store run in one thread, in the order of the calls; reads of the host run in a pool of
threads. So neither blocks the event loop.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from zfsilod.engine.step import HostStep
from zfsilod.host.clock import HostClock
from zfsilod.model.errors import StoreCorrupt, Unavailable
from zfsilod.model.ownership import Ownership
from zfsilod.model.records import Attachment
from zfsilod.requests.context import LOOK_DEADLINE_S
from zfsilod.requests.request import View
from zfsilod.service.peer_questions import ask_peers
from zfsilod.service.retention import Retention
from zfsilod.service.rooms import Rooms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from zfsilod.host import HostAdapters
    from zfsilod.model.identity import Caller
    from zfsilod.model.records import Action, Volume
    from zfsilod.model.settings import Settings
    from zfsilod.requests.context import Servers
    from zfsilod.requests.peers import PeerAnswer
    from zfsilod.requests.request import Request
    from zfsilod.security.kept_identity import IdentityChange
    from zfsilod.storage.store import Store
    from zfsilod.storage.transaction import Transaction

T = TypeVar("T")
STORE_DEADLINE_S = 20.0  # a write waits for the disk; callers on the bus wait 25 s
SESSION_RECOVERY_S = 5.0
LOOKS_AT_ONCE = 8


class ServiceContext:
    """Implements requests.context.Context over one store and one host."""

    def __init__(
        self,
        store: Store,
        machine: HostAdapters,
        servers: Servers,
        settings: Settings,
        *,
        boot_id: str,
    ) -> None:
        self.store = store
        self.machine = machine
        self.servers = servers
        self.settings = settings
        self.boot_id = boot_id
        self.lifted = asyncio.Event()  # a hold ended: what was held back is due
        self.ownership = Ownership(self.lifted.set)
        self.comparing = asyncio.Lock()
        self.session_recovery_s = SESSION_RECOVERY_S
        self.promoting: dict[str, float] = {}
        self.suspected: set[str] = set()
        self.identity_changes: tuple[IdentityChange, ...] = ()  # of this host, at the start
        self.clock = HostClock()  # for display and names; a retention has its own
        self.retention = Retention(HostClock())
        self._writer = ThreadPoolExecutor(1, "store")
        self._lookers = Rooms(LOOKS_AT_ONCE, "look")

    def now(self) -> int:
        """Return the seconds since 1970."""
        return int(self.clock.now())

    def close(self) -> None:
        """Release the threads; their calls end by their own deadlines."""
        self._writer.shutdown(wait=False)
        self._lookers.shutdown(wait=False)

    def read(self) -> AbstractContextManager[Transaction]:
        """Open a read transaction: a consistent view that blocks no writer."""
        return self.store.read()

    async def write(self, change: Callable[[Transaction], T]) -> T:
        """Run one write transaction in the store's thread. Raises Unavailable after 10 s."""

        def transact() -> T:
            with self.store.write() as txn:
                return change(txn)

        return await _in_thread(self._writer, transact, STORE_DEADLINE_S, "the store")

    async def look(self, question: Callable[[], T], timeout_s: float = LOOK_DEADLINE_S) -> T:
        """Read the host in a thread. Raises Unavailable when it does not answer in time."""
        return await _in_thread(self._lookers, question, timeout_s, "the host")

    async def ask_peers(self, volume: Volume, peers: Sequence[str]) -> tuple[PeerAnswer, ...]:
        """Ask other servers what they are for a volume; no answer is an answer too."""
        return await ask_peers(self.servers, volume, peers)

    async def pause(self, seconds: float) -> None:
        """Wait before a fact that changes without an event is probed again."""
        await asyncio.sleep(seconds)

    async def holds(self, actions: Sequence[Action]) -> bool:
        """Tell whether all these actions are done already, as far as the daemon can probe.

        Remote actions count as done, as do sticky ones: a mounted volume has a filesystem. A fact
        that the daemon's sandbox hides counts as not holding: the worker probes it.
        """
        probed = [
            (action.step, action.up)
            for action in actions
            if isinstance(action.step, HostStep) and not action.step.sticky
        ]
        try:
            return await self.look(
                lambda: all(step.probe(self.machine) == up for step, up in probed)
            )
        except (Unavailable, StoreCorrupt):  # or its secrets were dropped since
            return False

    def view(
        self,
        txn: Transaction,
        operation_id: str,
        caller: Caller,
        *,
        finished: Sequence[Request[Any]] = (),
    ) -> View:
        """Return the view for a plan; `finished`: prerequisites taken as finished."""
        return View(
            txn,
            self.settings,
            operation_id=operation_id,
            caller=caller,
            now=self.now(),
            boot_id=self.boot_id,
            clock_trusted=self.retention.is_trusted,
            finished=finished,
        )


async def _in_thread(
    pool: ThreadPoolExecutor, question: Callable[[], T], timeout_s: float, name: str
) -> T:
    loop = asyncio.get_running_loop()
    try:
        # Not wait_for: in Python 3.11 it drops a cancellation that arrives with the result.
        async with asyncio.timeout(timeout_s):
            return await loop.run_in_executor(pool, question)
    except TimeoutError:
        raise Unavailable(f"{name} did not answer within {timeout_s:.0f} s") from None


def recorded_portals(store: Store, server: str) -> set[str]:
    """Return the portals of a server that attachments of this host have."""
    with store.read() as txn:
        return {
            portal
            for attachment in txn.scan(Attachment)
            if attachment.server == server
            for portal in attachment.portals
        }

"""Keeps the shared ports closed after a start, until the exports of all volumes are restored.

The kernel's NVMe target listens at a port from the first link on. A client that connects then, and
whose volume is not linked yet, gives its disk up. So after a boot nothing else may link a port
before the first pass of the reconciler has linked all of them: requests that would, wait.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zfsilod.engine.steps.export import AllPortals, Portals, Reopened
from zfsilod.model.errors import Unavailable
from zfsilod.model.names import transport_of
from zfsilod.model.records import Publication

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.records import Action
    from zfsilod.storage.transaction import Transaction

OPENING = (AllPortals, Portals, Reopened)


class PortGate:
    """Open, unless the daemon has started and its first pass has not ended."""

    def __init__(self) -> None:
        self.is_open = True  # any request may link a port
        self._opened = asyncio.Event()

    def close(self, txn: Transaction) -> None:
        """Close the gate, if this host has publications at shared ports."""
        if any(one.transport == "NVME" for one in txn.scan(Publication)):
            self.is_open = False
            self._opened.clear()

    def open(self) -> None:
        """Open the gate: all exports are restored, as far as they can be."""
        self.is_open = True
        self._opened.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait until the gate is open. Raises Unavailable (RESTORING)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._opened.wait()
        except TimeoutError:
            raise Unavailable(
                "the exports of all volumes are being restored after the start of this host; "
                "repeat the call later",
                reason="RESTORING",
            ) from None


def opens_ports(actions: Iterable[Action]) -> bool:
    """Tell whether these actions may link a target to a port that it shares with others."""
    return any(
        transport_of(target) == "NVME"
        for action in actions
        if action.up and isinstance(action.step, OPENING)
        for target in action.step.resources().targets
    )

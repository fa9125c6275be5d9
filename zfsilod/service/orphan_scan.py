"""Lists the orphans of this host."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zfsilod.requests.context import INVENTORY_DEADLINE_S
from zfsilod.requests.orphans import Orphan, orphans, owned_things, take_inventory

if TYPE_CHECKING:
    from zfsilod.requests.context import Context


async def find_orphans(context: Context) -> list[Orphan]:
    """Return all orphans of this host, in the order of their names."""
    question = partial(take_inventory, context.machine, context.settings)
    present = await context.look(question, timeout_s=INVENTORY_DEADLINE_S)
    with context.read() as txn:
        owned = owned_things(txn)
    return sorted(orphans(present, owned, context.settings), key=lambda orphan: orphan.name)

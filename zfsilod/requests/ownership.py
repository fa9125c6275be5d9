"""The request that claims the pool for this store."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine.plans import up
from zfsilod.engine.steps.ownership import PoolOwned
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.ownership import (
    IDENTITY,
    PoolClaim,
    PoolOwner,
    StoreIdentity,
    judge_pool,
    parse_owner,
)
from zfsilod.model.records import Publication
from zfsilod.requests.request import Plan, Request, View, put

if TYPE_CHECKING:
    from zfsilod.model.ownership import Hold
    from zfsilod.requests.context import Context

PROBE_S = 10.0


class ClaimPool(Request[str]):
    """Count the generation up, in the store and on the pool."""

    kind = "claim-pool"
    on_pool = False  # it ends the hold: `plan` judges
    root: str
    adopted: bool = False  # the store knows what the pool knows, so any generation may be claimed
    take_over: bool = False  # also from another store

    @property
    def subject(self) -> str:
        return f"pools/{self.root.partition('/')[0]}"

    async def gather(self, context: Context, operation_id: str) -> str:
        """Return the present owner."""
        return await context.look(partial(context.machine.zfs.find_owner, self.root), PROBE_S)

    def plan(self, view: View, inputs: str) -> Plan:
        identity = view.txn.get(StoreIdentity, IDENTITY)
        assert identity is not None, "the daemon makes the identity at its start"
        claim, host = view.txn.get(PoolClaim, self.root), view.settings.host_id
        hold = judge_pool(self.root, inputs, identity, claim, host=host)
        if hold is not None and not self.allows(hold):
            raise hold.error()
        if hold is not None and hold.reason != "POOL_NEWER":
            _check_withdrawn(view)
        present = parse_owner(inputs)
        known = (present.generation if present else 0, claim.generation if claim else 0)
        owner = PoolOwner(store_id=identity.store_id, generation=max(known) + 1, host=host)
        return Plan(
            title=f"claim the pool of {self.root} (generation {owner.generation})",
            claims=(f"pool/{self.root}",),
            actions=up([PoolOwned(root=self.root, owner=str(owner))]),
            commit=(put(PoolClaim(id=self.root, generation=owner.generation)),),
        )

    def allows(self, hold: Hold) -> bool:
        """Tell whether the pool may be claimed in spite of a hold."""
        needs_take_over = "--take-over" in hold.command
        known = hold.reason != "POOL_UNKNOWN"
        return known and (self.take_over or (self.adopted and not needs_take_over))


def _check_withdrawn(view: View) -> None:
    """Raise FailedPrecondition (PUBLISHED) while a client may remember what the pool has lost."""
    volumes = sorted({publication.volume for publication in view.txn.scan(Publication)})
    if volumes:
        raise FailedPrecondition(
            f"the publications of {', '.join(volumes)} are not withdrawn, and their clients may "
            "remember blocks that the pool does not have: remove what prevents it, and run the "
            "command again",
            reason="PUBLISHED",
            volumes=",".join(volumes),
        )

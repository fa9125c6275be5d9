"""The request that restores the facts of one volume from its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine.steps.zfs import Zvol
from zfsilod.requests.expected import expected
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from zfsilod.model.records import Action


class SyncVolume(Request[None]):
    """Restore the facts of a volume from its records. It never creates a zvol."""

    descends = True
    kind = "sync"
    id: str

    def uses_pool(self, view: View) -> bool:
        return volume_view(view.txn, self.id).volume is not None

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        return expected(volume_view(view.txn, self.id), view.settings)

    def plan(self, view: View, inputs: None) -> Plan:
        records_view = volume_view(view.txn, self.id)
        records = [
            record
            for record in (records_view.volume, records_view.attachment)
            if record is not None
        ]
        actions = expected(records_view, view.settings)
        return Plan(
            title=f"sync {self.id}",
            claims=tuple(f"{record.bucket()}/{self.id}" for record in records),
            actions=tuple(action for action in actions if not isinstance(action.step, Zvol)),
            commit=tuple(put(record) for record in records),
        )

"""The request that restores the facts of one volume from its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine.steps.export import Portals
from zfsilod.engine.steps.zfs import Zvol
from zfsilod.requests.expected import expected
from zfsilod.requests.open_ports import target_at_shared_ports
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from zfsilod.model.records import Action
    from zfsilod.storage.volume_view import VolumeView


class SyncVolume(Request[None]):
    """Restore the facts of a volume from its records. It never creates a zvol."""

    descends = True
    kind = "sync"
    id: str
    opens: bool = True  # False: its target does not listen at ports that it shares, as yet

    def uses_pool(self, view: View) -> bool:
        return volume_view(view.txn, self.id).volume is not None

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        return self._expected(view, self._records(view))

    def _records(self, view: View) -> VolumeView:
        """Return the records; without `opens` not those of a client that connects at the ports."""
        records = volume_view(view.txn, self.id)
        return records if self._opens(view, records) else records.but(attachment=None)

    def _opens(self, view: View, records: VolumeView) -> bool:
        return self.opens or not target_at_shared_ports(records, view.settings)

    def _expected(self, view: View, records: VolumeView) -> tuple[Action, ...]:
        opens = self._opens(view, records)
        return tuple(
            action
            for action in expected(records, view.settings)
            if opens or not isinstance(action.step, Portals)
        )

    def plan(self, view: View, inputs: None) -> Plan:
        records_view = self._records(view)
        records = [
            record
            for record in (records_view.volume, records_view.attachment)
            if record is not None
        ]
        actions = self._expected(view, records_view)
        return Plan(
            title=f"sync {self.id}",
            claims=tuple(f"{record.bucket()}/{self.id}" for record in records),
            actions=tuple(action for action in actions if not isinstance(action.step, Zvol)),
            commit=tuple(put(record) for record in records),
        )

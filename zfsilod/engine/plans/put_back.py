"""The plan that puts an existing zvol back as that of a volume, with its exports. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine.plans import server
from zfsilod.engine.plans.actions import up
from zfsilod.engine.steps.keys import KeyAdded
from zfsilod.engine.steps.zfs import ZvolProperty, ZvolSize
from zfsilod.engine.steps.zvol_name import ZvolRenamed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.host_facts import ListedZvol
    from zfsilod.model.records import Action, Publication, Step, Volume, VolumeKey
    from zfsilod.model.settings import Export


def put_back(
    volume: Volume,
    present: ListedZvol,
    publications: Sequence[Publication],
    export: Export,
    *,
    epoch: int,
    operation: str,
    key: VolumeKey | None = None,
) -> tuple[Action, ...]:
    """Return marks, name, epoch and exports of a zvol that becomes that of the volume again.

    The marks come first: they prove to all other steps that the zvol is the volume's. `epoch`: the
    new one, 0 when the access does not change. `key`: the recorded one of a zvol that is an
    encryption root; a copy has none where it was sent without its properties, or is of a clone.
    Growing is final, and comes last.
    """
    before = {f"zfsilo:{name}": value for name, value in present.marks}
    values = server.all_properties(volume) | server.first_marks(volume)
    steps: list[Step] = [
        ZvolProperty(dataset=present.dataset, name=name, value=value, previous=before.get(name, ""))
        for name, value in values.items()
    ]
    if present.dataset != volume.dataset:
        steps.append(
            ZvolRenamed(
                dataset=volume.dataset,
                other=present.dataset,
                uid=volume.uid,
                guid=volume.guid,
            )
        )
    steps.append(server.epoch(volume, epoch, operation) if epoch else server.not_newer(volume))
    steps += server.key_loaded(volume)
    if key is not None:  # another key than that of an older copy, which carries its own
        steps.append(KeyAdded(dataset=volume.dataset, key=key.id, rotation=key.rotation))
    if publications:
        steps += server.published(volume, publications, export)
    steps.append(ZvolSize(dataset=volume.dataset, size_bytes=volume.capacity_bytes))
    return up(steps)

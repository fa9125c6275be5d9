"""Record fields that only the host knows, filled in when an operation ends. Pure."""

from __future__ import annotations

from zfsilod.model.host_facts import Filesystem
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import epoch_fact
from zfsilod.model.records import Attachment, Snapshot, Volume

if TYPE_CHECKING:
    from typing import TypeVar

    from zfsilod.model.record import Record

    R = TypeVar("R", bound=Record)


def apply_observed(record: R, facts: dict[str, str]) -> R:
    """Return a record with the facts that its operation observed (HostStep.observed)."""
    if isinstance(record, Volume):
        epoch = int(facts.get(epoch_fact(record.dataset), record.epoch))
        size = int(facts.get("volsize", record.capacity_bytes))  # of a replica: as it was sent
        return record.but(guid=facts.get("guid", record.guid), epoch=epoch, capacity_bytes=size)
    if isinstance(record, Snapshot):
        return record.but(guid=facts.get(f"snapshot guid {record.volume_uid}", record.guid))
    if isinstance(record, Attachment):
        filesystem = record.filesystem
        if "fs_uuid" in facts:
            filesystem = Filesystem(state="READY", type=facts["fs_type"], uuid=facts["fs_uuid"])
        return record.but(
            filesystem=filesystem,
            made_staging_path=record.made_staging_path or f"made {record.staging_path}" in facts,
            mounts=tuple(
                mount.but(made_path=mount.made_path or f"made {mount.path}" in facts)
                for mount in record.mounts
            ),
        )
    return record

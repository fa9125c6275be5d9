"""Requests on the keys of encrypted volumes: a new key, and the recovery key.

A volume that is created encrypted is an encryption root. Its clones have its key, so one rotation
is for all of them. A key that is not known to zfsilo any more, since its store was lost, can be
loaded by hand; the rotation then gives the volume a key that zfsilo keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.disk_key import DiskKey
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.records import Trashed, Volume, VolumeKey
from zfsilod.model.validation import check_etag
from zfsilod.requests.request import Plan, Request, View, drop_secret, put
from zfsilod.requests.volumes import check_sealed, check_unclaimed, need_primary, need_volume

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.storage.transaction import Transaction


class RotateVolumeKey(Request[None]):
    """Replace the key of an encrypted volume; exports and sessions go on."""

    kind = "rotate-key"
    id: str
    etag: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        volume = need_primary(view.txn, self.id)
        check_etag(self.etag, volume.revision)
        check_sealed(view.settings)
        check_own_key(view.txn, volume)
        before = view.txn.get(VolumeKey, volume.uid)
        rotation = before.rotation + 1 if before is not None else 1
        after = VolumeKey(id=volume.uid, rotation=rotation, created_at=view.now)
        return Plan(
            title=f"new key for {self.id}",
            claims=(f"volume/{self.id}",),
            actions=plans.key_change(volume, rotation),
            commit=(put(after), *((drop_secret(before.secret),) if before is not None else ())),
            revert=(drop_secret(after.secret),),
            secrets={after.secret: DiskKey.make()},
        )


def check_own_key(txn: Transaction, volume: Volume) -> None:
    """Raise FailedPrecondition unless a volume is encrypted with a key of its own."""
    if not volume.key_uid:
        raise FailedPrecondition(
            f"{volume.id} is not encrypted with a key that zfsilo keeps",
            reason="NOT_ENCRYPTED",
            volume=volume.id,
        )
    if volume.key_uid != volume.uid:
        owners = (*txn.scan(Volume), *(trashed.volume for trashed in txn.scan(Trashed)))
        name = next((owner.id for owner in owners if owner.uid == volume.key_uid), volume.key_uid)
        raise FailedPrecondition(
            f"{volume.id} is a clone and has the key of volume {name}: use that volume",
            reason="KEY_OF_ORIGIN",
            volume=volume.id,
        )


def check_export(txn: Transaction, volume_id: str) -> VolumeKey:
    """Return the record of a key that may be shown, which is once for each key.

    Raises NotFound, Busy while an operation on the volume is in progress, or FailedPrecondition
    (NOT_ENCRYPTED, KEY_OF_ORIGIN, KEY_LOST, KEY_EXPORTED).
    """
    volume = need_volume(txn, volume_id)
    check_unclaimed(txn, volume_id)
    check_own_key(txn, volume)
    key = txn.get(VolumeKey, volume.uid)
    if key is None:
        raise FailedPrecondition(
            f"the store has no key of volume {volume_id}; run zfsiloctl volume rotate-key "
            f"{volume_id} first",
            reason="KEY_LOST",
            volume=volume_id,
        )
    if key.exported_at:
        raise FailedPrecondition(
            f"the recovery key of {volume_id} was shown already; for another one run zfsiloctl "
            f"volume rotate-key {volume_id}",
            reason="KEY_EXPORTED",
            volume=volume_id,
        )
    return key


def check_carried(host: HostAdapters, volume: Volume, key: VolumeKey) -> None:
    """Raise FailedPrecondition (KEY_MISMATCH) unless the zvol carries this key, and no other.

    A store or a pool of another time has another key; the daemon itself may not try a key.
    """
    carried = host.keys.find_sealed(volume.dataset)
    if carried != host.key_store.sealed_key(key.id, key.rotation):
        raise FailedPrecondition(
            f"the key in the store is not the one that {volume.dataset} carries, so it may not "
            f"open the volume; run zfsiloctl volume rotate-key {volume.id} first",
            reason="KEY_MISMATCH",
            volume=volume.id,
        )

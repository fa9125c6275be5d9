"""The keys of encryption roots on the simulated host.

A zvol has the uid of its encryption root and, if it is one itself, a digest of its key. That the
key of a root is loaded is a fact of its own, which a reboot removes.
"""

from __future__ import annotations

from zfsilod.host.fake.secrets import key_digest, loaded_fact
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from zfsilod.host.fake.zfs import FakeZfs
    from zfsilod.model.disk_key import DiskKey


class FakeKeys:
    """Keys as facts."""

    def __init__(self, zfs: FakeZfs) -> None:
        self._zfs = zfs
        self._facts = zfs.facts

    def is_loaded(self, dataset: str) -> bool:
        zvol = self._zvol(dataset)
        return self._facts.get(loaded_fact(zvol["root"])) is not None

    def load(self, dataset: str, key: DiskKey) -> None:
        if self.is_loaded(dataset):
            return
        root = self._zvol(dataset)["root"]
        zvols = self._facts.of_kind("zvol").items()
        name, zvol = next((name, zvol) for name, zvol in zvols if zvol["uid"] == root)
        if zvol["wrapped"] != key_digest(key):
            from zfsilod.host.zfs_output import mismatch

            raise mismatch(name)
        self._facts.effect(loaded_fact(root), "loaded")

    def opens(self, dataset: str, key: DiskKey) -> bool:
        return bool(self._zvol(dataset)["wrapped"] == key_digest(key))

    def change(self, dataset: str, key: DiskKey, former: DiskKey | None) -> None:
        if not self.is_loaded(dataset):
            present = key if self.opens(dataset, key) else former
            if present is None:
                from zfsilod.host.zfs_output import no_key

                raise no_key(dataset, dataset)
            self.load(dataset, present)
        if not self.opens(dataset, key):
            zvol = self._zvol(dataset)
            self._facts.effect(f"zvol:{dataset}", zvol | {"wrapped": key_digest(key)})

    def _zvol(self, dataset: str) -> Any:
        zvol = self._zfs.zvol(dataset)
        if not zvol.get("root"):
            from zfsilod.host.zfs_output import not_encrypted

            raise not_encrypted(dataset)
        return zvol


def made_up_key(uid: str, rotation: int) -> DiskKey:
    """Return a key for a host without a store, the same for the same volume and rotation."""
    import hashlib

    from zfsilod.model.disk_key import DiskKey

    return DiskKey(hashlib.sha256(f"{uid} {max(rotation, 0)}".encode()).hexdigest())

"""The keys of encryption roots on the simulated host.

A zvol has the uid of its encryption root (a raw copy: its own guid) and, if it is one itself, a
digest of its key. That the key of a root is loaded is a fact of its own, which a reboot removes.
"""

from __future__ import annotations

from zfsilod.host.fake.secrets import key_digest, loaded_fact
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import SEALED_KEY

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
        name, zvol = self._root(dataset)
        if zvol["wrapped"] != key_digest(key):
            from zfsilod.host.zfs_output import mismatch

            raise mismatch(name)
        self._facts.effect(loaded_fact(zvol["root"]), "loaded")

    def opens(self, dataset: str, key: DiskKey) -> bool:
        return bool(self._zvol(dataset)["wrapped"] == key_digest(key))

    def change(self, dataset: str, key: DiskKey) -> None:
        if not self.is_loaded(dataset):
            from zfsilod.host.zfs_output import no_key

            raise no_key(dataset, dataset)
        if not self.opens(dataset, key):
            zvol = self._zvol(dataset)
            self._facts.effect(f"zvol:{dataset}", zvol | {"wrapped": key_digest(key)})

    def find_root(self, dataset: str) -> str:
        if not self._zfs.zvol(dataset).get("root"):
            return ""
        name, _zvol = self._root(dataset)
        return name

    def find_sealed(self, dataset: str) -> str:
        root = self.find_root(dataset)
        return self._zfs.find_mark(root, SEALED_KEY) if root else ""

    def _root(self, dataset: str) -> tuple[str, Any]:
        """Return the name and the facts of the encryption root of a zvol."""
        uid = self._zvol(dataset)["root"]
        zvols = self._facts.of_kind("zvol").items()
        return next((name, zvol) for name, zvol in zvols if uid in (zvol["uid"], zvol["guid"]))

    def _zvol(self, dataset: str) -> Any:
        zvol = self._zfs.zvol(dataset)
        if not zvol.get("root"):
            from zfsilod.host.zfs_output import not_encrypted

            raise not_encrypted(dataset)
        return zvol


class MadeUpKeys:
    """Keys for a host without a store, the same for the same volume and rotation."""

    def disk_key(self, uid: str, rotation: int) -> DiskKey:
        """Return a key; the current one has the rotation 0."""
        import hashlib

        from zfsilod.model.disk_key import DiskKey

        return DiskKey(hashlib.sha256(f"{uid} {max(rotation, 0)}".encode()).hexdigest())

    def disk_keys(self, uid: str, sealed: str) -> list[DiskKey]:
        """Return the current key, and those whose rotations a zvol carries."""
        carried = (int(text.partition(":")[0]) for text in sealed.split())
        return [self.disk_key(uid, number) for number in dict.fromkeys((0, *carried))]

    def sealed_key(self, uid: str, rotation: int) -> str:
        """Return the rotation, and no key."""
        return f"{max(rotation, 0)}:{uid}"

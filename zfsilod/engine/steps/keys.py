"""Steps on the keys of encrypted zvols."""

from __future__ import annotations

from zfsilod.engine.step import HostStep, OneWay
from zfsilod.model.disk_key import CURRENT
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import SEALED_KEY
from zfsilod.model.records import Resources, disk_key_name

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters


class LoadsKey(HostStep):
    """A step that loads the key of a zvol."""

    def load(self, host: HostAdapters, dataset: str, uid: str) -> None:
        """Load the key of a zvol: the one of the record, or else one that the zvol carries.

        Raises FailedPrecondition (KEY_LOST, KEY_MISMATCH).
        """
        if host.keys.is_loaded(dataset):
            return
        try:
            *others, last = host.key_store.disk_keys(uid, host.keys.find_sealed(dataset))
        except FailedPrecondition as error:
            if error.reason != "KEY_LOST":
                raise
            raise lost(host.keys.find_root(dataset)) from None
        for key in others:
            try:
                host.keys.load(dataset, key)
            except FailedPrecondition as error:
                if error.reason != "KEY_MISMATCH":
                    raise
            else:
                return
        host.keys.load(dataset, last)


class KeyLoaded(LoadsKey, OneWay, tag="KeyLoaded", part="POOL"):
    """The key of the zvol is loaded: without it the zvol has no device.

    Nothing unloads it: other volumes may have the same key, and a loaded key exports nothing.
    """

    volatile = True
    dataset: str
    key: str  # uid of the volume whose key it is

    def probe(self, host: HostAdapters) -> bool:
        return host.keys.is_loaded(self.dataset)

    def do(self, host: HostAdapters) -> None:
        self.load(host, self.dataset, self.key)

    def fact(self) -> str:
        return "key is loaded"

    def describe_do(self) -> str:
        return f"load the key of zvol {self.dataset}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,), secrets=(disk_key_name(self.key, 0),))


class OfRotation(HostStep):
    """A step on one key of an encryption root, by its number."""

    dataset: str
    key: str  # uid of the volume, which is the encryption root
    rotation: int

    def sealed(self, host: HostAdapters) -> str:
        """Return the key as a zvol carries it."""
        return host.key_store.sealed_key(self.key, self.rotation)

    def resources(self) -> Resources:
        name = disk_key_name(self.key, self.rotation)
        return Resources(datasets=(self.dataset,), volumes=(self.key,), secrets=(name,))


class KeyChanged(OfRotation, LoadsKey, tag="KeyChanged", part="POOL"):
    """The zvol and its clones have the key with this number.

    Final: the former key need not be known to zfsilo, and the new one is kept from now on.
    """

    final = (True,)

    def probe(self, host: HostAdapters) -> bool:
        return host.keys.opens(self.dataset, host.key_store.disk_key(self.key, self.rotation))

    def do(self, host: HostAdapters) -> None:
        self._change(host, self.rotation)

    def undo(self, host: HostAdapters) -> None:
        if self.probe(host):
            self._change(host, CURRENT)

    def _change(self, host: HostAdapters, rotation: int) -> None:
        """Give the zvol a key; it may have that, or the other one, and need not be loaded."""
        new = host.key_store.disk_key(self.key, rotation)
        other = CURRENT if rotation == self.rotation else self.rotation
        if not host.keys.is_loaded(self.dataset):
            if host.keys.opens(self.dataset, new):
                host.keys.load(self.dataset, new)
            elif other == CURRENT:
                self.load(host, self.dataset, self.key)
            else:
                host.keys.load(self.dataset, host.key_store.disk_key(self.key, other))
        host.keys.change(self.dataset, new)

    def fact(self) -> str:
        return f"zvol has key {self.rotation}"

    def describe_do(self) -> str:
        return f"change the key of zvol {self.dataset} to key {self.rotation}"

    def describe_undo(self) -> str:
        return f"restore the former key of zvol {self.dataset}"


class KeyAdded(OfRotation, tag="KeyAdded", part="POOL"):
    """The zvol carries this key too, sealed, beside those that it carries.

    It precedes the change of the key: whatever becomes of the operation and of its secrets, the
    zvol carries the key that it has, the former one or this one.
    """

    def probe(self, host: HostAdapters) -> bool:
        return self.sealed(host) in host.keys.find_sealed(self.dataset).split()

    def do(self, host: HostAdapters) -> None:
        carried = dict.fromkeys([*host.keys.find_sealed(self.dataset).split(), self.sealed(host)])
        host.zfs.set_property(self.dataset, SEALED_KEY, " ".join(carried))

    def undo(self, host: HostAdapters) -> None:
        if self.probe(host):
            carried = host.keys.find_sealed(self.dataset).split()
            carried.remove(self.sealed(host))
            host.zfs.set_property(self.dataset, SEALED_KEY, " ".join(carried))

    def fact(self) -> str:
        return f"zvol carries key {self.rotation} too, sealed"

    def describe_do(self) -> str:
        return f"add key {self.rotation}, sealed, to a property of zvol {self.dataset}"

    def describe_undo(self) -> str:
        return f"remove key {self.rotation}, sealed, from a property of zvol {self.dataset}"


class KeyCarried(OfRotation, OneWay, tag="KeyCarried", part="POOL"):
    """The zvol carries its key, sealed by the key of the store, and no other.

    A store that was restored from an older backup, or is new, opens the volume with it. It is set
    with the key alone: a reconcile of an older store would replace it with an older key.
    """

    def probe(self, host: HostAdapters) -> bool:
        return host.keys.find_sealed(self.dataset) == self.sealed(host)

    def do(self, host: HostAdapters) -> None:
        host.zfs.set_property(self.dataset, SEALED_KEY, self.sealed(host))

    def fact(self) -> str:
        return f"zvol carries key {self.rotation}, sealed"

    def describe_do(self) -> str:
        return f"store key {self.rotation}, sealed, in a property of zvol {self.dataset}"


def lost(root: str) -> FailedPrecondition:
    """Return the error for an encryption root whose key neither the store nor the zvol has."""
    return FailedPrecondition(
        f"zfsilo has no key of {root}: load it with its recovery key (zfs load-key {root}), then "
        "run zfsiloctl volume rotate-key",
        reason="KEY_LOST",
        dataset=root,
    )

"""Steps on the keys of encrypted zvols."""

from __future__ import annotations

from zfsilod.engine.step import HostStep, OneWay
from zfsilod.model.disk_key import CURRENT
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Resources, disk_key_name

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters


class KeyLoaded(OneWay, tag="KeyLoaded", part="POOL"):
    """The key of the zvol is loaded: without it the zvol has no device.

    Nothing unloads it: other volumes may have the same key, and a loaded key exports nothing.
    """

    volatile = True
    dataset: str
    key: str  # uid of the volume whose key it is

    def probe(self, host: HostAdapters) -> bool:
        return host.keys.is_loaded(self.dataset)

    def do(self, host: HostAdapters) -> None:
        host.keys.load(self.dataset, host.disk_key(self.key, CURRENT))

    def fact(self) -> str:
        return "key is loaded"

    def describe_do(self) -> str:
        return f"load the key of zvol {self.dataset}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,), secrets=(disk_key_name(self.key, 0),))


class KeyChanged(HostStep, tag="KeyChanged", part="POOL"):
    """The zvol and its clones have the key with this number.

    Final: the former key need not be known to zfsilo, and the new one is kept from now on.
    """

    final = (True,)
    dataset: str
    key: str  # uid of the volume, which is the encryption root
    rotation: int
    known: bool  # zfsilo has the former key; otherwise it has to be loaded by hand

    def probe(self, host: HostAdapters) -> bool:
        return host.keys.opens(self.dataset, host.disk_key(self.key, self.rotation))

    def do(self, host: HostAdapters) -> None:
        former = host.disk_key(self.key, CURRENT) if self.known else None
        host.keys.change(self.dataset, host.disk_key(self.key, self.rotation), former)

    def undo(self, host: HostAdapters) -> None:
        if not self.probe(host):
            return  # it still has the former key
        if not self.known:
            raise FailedPrecondition(
                f"the former key of {self.dataset} is not known", reason="KEY_LOST"
            )
        key = host.disk_key(self.key, self.rotation)
        host.keys.change(self.dataset, host.disk_key(self.key, CURRENT), key)

    def fact(self) -> str:
        return f"zvol has key {self.rotation}"

    def describe_do(self) -> str:
        return f"change the key of zvol {self.dataset} to key {self.rotation}"

    def describe_undo(self) -> str:
        return f"restore the former key of zvol {self.dataset}"

    def resources(self) -> Resources:
        name = disk_key_name(self.key, self.rotation)
        return Resources(datasets=(self.dataset,), volumes=(self.key,), secrets=(name,))

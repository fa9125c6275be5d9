"""Maps of dm-multipath in sysfs: the one disk to which several iSCSI sessions with a target lead.

    /sys/class/block/sda/holders/dm-0    the map above a path
    /sys/class/block/dm-0/slaves/sda     a path of the map
    /sys/class/block/dm-0/dm/uuid        mpath-WWID

A map is known by the WWID in its uuid, never by its name, which an administrator may choose. The
WWID is that of the serial, as the kernel's target makes it: spc_emulate_evpd_83() and
spc_gen_naa_6h_vendor_specific() in drivers/target/target_core_spc.c.
"""

from __future__ import annotations

from zfsilod.host.attributes import read
from zfsilod.host.device import Device
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import names

if TYPE_CHECKING:
    from collections.abc import Iterable

# "3" is the type of the identifier in page 0x83 (NAA), as udev and multipathd write it.
NAA = "36001405"
SERIAL_DIGITS = 25  # of a serial, in a WWID


class MapDevice(Device):
    """A map: a whole disk whose paths are the disks of sessions."""

    @property
    def map_name(self) -> str:
        """The name for dmsetup(8) and multipath(8)."""
        return read(f"{self.folder}/dm/name")

    @property
    def paths(self) -> list[str]:
        """The names of its paths, such as sda."""
        return names(f"{self.folder}/slaves")

    @property
    def serial(self) -> str:
        """The serial that all its paths have; "" when it has no path, or they differ."""
        serials = {Device(f"{self.folder}/slaves/{name}").serial for name in self.paths}
        return serials.pop() if len(serials) == 1 else ""


def wwid_of(serial: str) -> str:
    """Return the WWID of a disk with a serial."""
    return NAA + serial[:SERIAL_DIGITS]


def map_above(device: Device, sys: str, dev: str) -> MapDevice | None:
    """Return the map that has a disk as a path, and that is the map of the serial of this disk."""
    for holder in names(f"{device.folder}/holders"):
        if _is_map_of(holder, sys, device.serial):
            return MapDevice(f"{sys}/class/block/{holder}", dev)
    return None


def find_map(paths: Iterable[Device], serial: str, sys: str, dev: str) -> MapDevice | None:
    """Return the map above one of these paths, or the map of a serial that has no path now."""
    for path in paths:
        if joined := map_above(path, sys, dev):
            return joined
    for name in names(f"{sys}/class/block"):
        if name.startswith("dm-") and _is_map_of(name, sys, serial):
            return MapDevice(f"{sys}/class/block/{name}", dev)
    return None


def _is_map_of(name: str, sys: str, serial: str) -> bool:
    uuid = read(f"{sys}/class/block/{name}/dm/uuid")
    return bool(serial) and uuid == f"mpath-{wwid_of(serial)}"

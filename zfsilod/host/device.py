"""A block device in sysfs: its number, size, access and serial."""

from __future__ import annotations

from zfsilod.host.attributes import read

DEV = "/dev"
SECTOR_BYTES = 512  # the unit of /sys/block/*/size, independent of the disk's sectors
VPD_HEADER_BYTES = 4


class Device:
    """A whole disk in /sys/block."""

    def __init__(self, folder: str, dev: str = DEV) -> None:
        self.folder = folder
        self.name = folder.rpartition("/")[2]
        self.path = f"{dev}/{self.name}"

    @property
    def number(self) -> str:
        """The device number as major:minor, as in proc_pid_mountinfo(5): "8:0"."""
        return read(f"{self.folder}/dev")

    @property
    def size_bytes(self) -> int:
        """The size that the kernel last read from the target."""
        return int(read(f"{self.folder}/size") or 0) * SECTOR_BYTES

    @property
    def readonly(self) -> bool:
        """Whether the disk is write-protected, by the target or on this host."""
        return read(f"{self.folder}/ro") == "1"

    @property
    def serial(self) -> str:
        """The unit serial number of the target: SPC, vital product data page 0x80. "" if none."""
        try:
            with open(f"{self.folder}/device/vpd_pg80", "rb") as file:
                page = file.read()
        except OSError:
            return ""
        return page[VPD_HEADER_BYTES:].decode("ascii", "replace").strip(" \0")

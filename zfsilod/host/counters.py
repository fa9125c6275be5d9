"""The kernel's counters of exported volumes and of sessions, read from sysfs and configfs.

For the metrics: no process is started, and a counter that cannot be read is left out.
drivers/target/target_core_stat.c (scsi_lu) and drivers/target/iscsi/iscsi_target_stat.c
(iscsi_instance) of the kernel. The target of NVMe has no counters: those of the zvol's device are
read, Documentation/block/stat.rst, which count from the appearance of the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.model.names import transport_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MEBIBYTE = 1 << 20
SECTOR = 512
READS, SECTORS_READ, WRITES, SECTORS_WRITTEN = 0, 2, 4, 6  # in the line of a block device
# Attributes of statistics/scsi_lu, and the unit of each.
LIO_COUNTS = {"num_cmds": 1, "read_mbytes": MEBIBYTE, "write_mbytes": MEBIBYTE}


class Counters:
    """The counters below /sys."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._target = root / "kernel/config/target"
        self._subsystems = root / "kernel/config/nvmet/subsystems"
        self._sessions = root / "class/iscsi_session"
        self._controllers = root / "class/nvme"
        self._block = root / "block"

    def volume(self, uid: str, target: str = "") -> tuple[int, int, int] | None:
        """Return commands, bytes read and bytes written of a volume since it was exported.

        Over NVMe, by the name of the target, since the device of the zvol appeared. None when the
        volume is not exported.
        """
        if target and transport_of(target) == "NVME":
            return self._namespace(target)
        folder = self._target / f"core/iblock_0/zfsilo-{uid}/statistics/scsi_lu"
        counts = [_number(folder / name) for name in LIO_COUNTS]
        if None in counts:
            return None
        commands, read, written = (
            (count or 0) * unit for count, unit in zip(counts, LIO_COUNTS.values(), strict=True)
        )
        return commands, read, written

    def _namespace(self, target: str) -> tuple[int, int, int] | None:
        try:
            device = Path((self._subsystems / target / "namespaces/1/device_path").read_text())
            counts = list(
                map(int, (self._block / device.name.strip() / "stat").read_text().split())
            )
            commands = counts[READS] + counts[WRITES]
            return commands, counts[SECTORS_READ] * SECTOR, counts[SECTORS_WRITTEN] * SECTOR
        except (OSError, ValueError, IndexError):
            return None

    def served_sessions(self, targets: Iterable[str]) -> int:
        """Return the number of sessions of clients with these targets.

        The kernel's target of NVMe does not tell who is connected.
        """
        counts = (
            _number(self._target / f"iscsi/{target}/fabric_statistics/iscsi_instance/sessions")
            for target in targets
        )
        return sum(count or 0 for count in counts)

    def own_sessions(self) -> int:
        """Return the number of sessions of this host as a client, with any target.

        Over NVMe each controller is one, that of a local disk is none.
        """
        try:
            sessions = len(list(self._sessions.iterdir()))
        except OSError:
            sessions = 0
        return sessions + sum(map(_is_remote, self._controllers.glob("*/transport")))


def _is_remote(path: Path) -> bool:
    try:
        return path.read_text().strip() == "tcp"
    except OSError:
        return False


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

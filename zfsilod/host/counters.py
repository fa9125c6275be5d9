"""The kernel's counters of exported volumes and iSCSI sessions, read from sysfs and configfs.

For the metrics: no process is started, and a counter that cannot be read is left out.
drivers/target/target_core_stat.c (scsi_lu) and drivers/target/iscsi/iscsi_target_stat.c
(iscsi_instance) of the kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MEBIBYTE = 1 << 20
# Attributes of statistics/scsi_lu, and the unit of each.
LIO_COUNTS = {"num_cmds": 1, "read_mbytes": MEBIBYTE, "write_mbytes": MEBIBYTE}


class Counters:
    """The counters below /sys."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._target = root / "kernel/config/target"
        self._sessions = root / "class/iscsi_session"

    def volume(self, uid: str) -> tuple[int, int, int] | None:
        """Return commands, bytes read and bytes written of a volume since it was exported.

        None when the volume is not exported.
        """
        folder = self._target / f"core/iblock_0/zfsilo-{uid}/statistics/scsi_lu"
        counts = [_number(folder / name) for name in LIO_COUNTS]
        if None in counts:
            return None
        commands, read, written = (
            (count or 0) * unit for count, unit in zip(counts, LIO_COUNTS.values(), strict=True)
        )
        return commands, read, written

    def served_sessions(self, targets: Iterable[str]) -> int:
        """Return the number of sessions of clients with these targets."""
        counts = (
            _number(self._target / f"iscsi/{target}/fabric_statistics/iscsi_instance/sessions")
            for target in targets
        )
        return sum(count or 0 for count in counts)

    def own_sessions(self) -> int:
        """Return the number of sessions of this host's initiator, with any target."""
        try:
            return len(list(self._sessions.iterdir()))
        except OSError:
            return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

"""Settings: the part of the configuration that plans depend on."""

from __future__ import annotations

from zfsilod.model.host_facts import CONTROLLER_IDS
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import at_port, is_placed
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from zfsilod.model.words import Transport


class Export(Record):
    """How this host exports volumes."""

    prefix: str  # of all target names: iqn.2026-01.org.zfsilo:give; over NVMe nqn. in its place
    portals: tuple[str, ...]
    nvme_portals: tuple[str, ...] = ()
    nvme_tls_port: int = 4421  # beside each of nvme_portals
    nvme_cntlid_min: int = CONTROLLER_IDS[0]  # the ids that this host gives to controllers
    nvme_cntlid_max: int = CONTROLLER_IDS[1]

    def portals_of(self, transport: Transport, *, tls: bool = False) -> tuple[str, ...]:
        """Return the portals of the targets of a transport; with `tls` those that require it."""
        if transport == "ISCSI":
            return self.portals
        return at_port(self.nvme_portals, self.nvme_tls_port) if tls else self.nvme_portals


class Settings(Record):
    """The settings that plans read."""

    host_id: str
    root: str  # dataset below which volumes are created; "": not a server
    export: Export
    adopt_from: tuple[str, ...] = ()  # datasets: they and those below may be adopted, too
    overcommit: float = 10.0
    reserve: float = 0.05  # share of the root below which nothing is created or grown
    reserve_warning: float = 0.1
    volblocksize: int = 16384
    trash_retention_s: int = 0  # time in which a deleted volume can be undeleted
    max_attachments: int = 0
    zone: str = "default"
    lost_session_s: int = 0  # I/O waits this long for a lost session; 0: without limit
    node_paths: tuple[str, ...] = ()  # folders in which the role node may stage and mount

    key_is_sealed: bool = True  # systemd keeps the key of the store, as a credential

    def may_hold(self, dataset: str) -> bool:
        """Tell whether a dataset may be that of a volume."""
        return is_placed(dataset, self.root, self.adopt_from)

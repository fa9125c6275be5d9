"""Settings: the part of the configuration that plans depend on."""

from __future__ import annotations

from zfsilod.model.record import Record


class Export(Record):
    """How this host exports volumes."""

    prefix: str  # of all target names: iqn.2026-01.org.zfsilo:give
    portals: tuple[str, ...]


class Settings(Record):
    """What plans need of the configuration."""

    host_id: str
    root: str  # dataset below which volumes are made; "": no storage host
    export: Export
    overcommit: float = 10.0
    reserve: float = 0.05  # of the root: below it nothing is created or grown
    reserve_warning: float = 0.1
    volblocksize: int = 16384
    trash_retention_s: int = 0  # how long a deleted volume can be undeleted
    max_attachments: int = 0
    zone: str = "default"
    node_paths: tuple[str, ...] = ()  # below which the role node may stage and mount

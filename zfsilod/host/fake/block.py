"""Filesystems on the disks of the simulated consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.host.fake.iscsi import need_session
from zfsilod.model.errors import Conflict
from zfsilod.model.host_facts import Disk, Filesystem

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts


class FakeBlock:
    """Filesystems as facts of a disk's serial: they outlive sessions."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_filesystem(self, disk: Disk, filesystem: Filesystem) -> bool:
        need_session(self.facts, disk)
        found = self.facts.get(f"content:{disk.serial}")
        if filesystem.state == "READY":
            if found is None or found["uuid"] != filesystem.uuid:
                raise Conflict(f"the disk {disk.serial} lost its filesystem", disk=disk.serial)
            return True
        if found and found["uuid"] != filesystem.uuid and found["type"] != filesystem.type:
            raise Conflict(f"the disk {disk.serial} carries {found['type']}", disk=disk.serial)
        return bool(found and found["whole"])

    def make_filesystem(self, disk: Disk, filesystem: Filesystem) -> None:
        need_session(self.facts, disk)
        made = {"type": filesystem.type, "uuid": filesystem.uuid, "size": disk.size_bytes}
        found = self.facts.get(f"content:{disk.serial}")
        assert found is None or found["uuid"] == filesystem.uuid, "mkfs over somebody's data"
        self.facts.effect(f"content:{disk.serial}", made | {"whole": False})
        self.facts.effect(f"content:{disk.serial}", made | {"whole": True})

    def is_renewed(self, disk: Disk, filesystem: Filesystem) -> bool:
        need_session(self.facts, disk)
        found = self.facts.get(f"content:{disk.serial}")
        if found is None or found["uuid"] not in (filesystem.uuid, filesystem.origin):
            raise Conflict(f"the disk {disk.serial} lost its filesystem", disk=disk.serial)
        return bool(found["uuid"] == filesystem.uuid)

    def renew(self, disk: Disk, filesystem: Filesystem) -> None:
        if not self.is_renewed(disk, filesystem):
            found = self.facts.get(f"content:{disk.serial}")
            self.facts.effect(f"content:{disk.serial}", found | {"uuid": filesystem.uuid})

    def find_filesystem(self, disk: Disk) -> Filesystem:
        found = self.facts.get(f"content:{disk.serial}")
        return Filesystem(state="READY", type=found["type"], uuid=found["uuid"])

    def fills(self, disk: Disk, _path: str) -> bool:
        return bool(self.facts.get(f"content:{disk.serial}")["size"] == disk.size_bytes)

    def grow(self, disk: Disk, path: str) -> None:
        assert self.facts.get(f"mount:{path}"), "only a mounted filesystem is grown"
        found = self.facts.get(f"content:{disk.serial}")
        self.facts.effect(f"content:{disk.serial}", found | {"size": disk.size_bytes})

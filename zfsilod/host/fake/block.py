"""The filesystems of the simulated host."""

from __future__ import annotations

from zfsilod.host.fake.sessions import need_session
from zfsilod.model.errors import Conflict
from zfsilod.model.host_facts import Disk, Filesystem
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts


class FakeBlock:
    """Filesystems by the serials of their disks, so that they survive the end of a session."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_filesystem(self, disk: Disk, filesystem: Filesystem) -> bool:
        need_session(self.facts, disk)
        content = self.facts.get(f"content:{disk.serial}")
        if filesystem.state == "READY":
            if content is None or content["uuid"] != filesystem.uuid:
                raise Conflict(f"the disk {disk.serial} lost its filesystem", disk=disk.serial)
            return True
        if content and content["uuid"] != filesystem.uuid and content["type"] != filesystem.type:
            raise Conflict(f"the disk {disk.serial} has {content['type']}", disk=disk.serial)
        return bool(content and content["whole"])

    def make_filesystem(self, disk: Disk, filesystem: Filesystem) -> None:
        need_session(self.facts, disk)
        content = {"type": filesystem.type, "uuid": filesystem.uuid, "size": disk.size_bytes}
        before = self.facts.get(f"content:{disk.serial}")
        assert before is None or before["uuid"] == filesystem.uuid, "mkfs on a disk with data"
        self.facts.effect(f"content:{disk.serial}", content | {"whole": False})
        self.facts.effect(f"content:{disk.serial}", content | {"whole": True})

    def has_own_uuid(self, disk: Disk, filesystem: Filesystem) -> bool:
        need_session(self.facts, disk)
        content = self.facts.get(f"content:{disk.serial}")
        if content is None or content["uuid"] not in (filesystem.uuid, filesystem.origin):
            raise Conflict(f"the disk {disk.serial} lost its filesystem", disk=disk.serial)
        return bool(content["uuid"] == filesystem.uuid)

    def regenerate_uuid(self, disk: Disk, filesystem: Filesystem) -> None:
        if not self.has_own_uuid(disk, filesystem):
            content = self.facts.get(f"content:{disk.serial}")
            self.facts.effect(f"content:{disk.serial}", content | {"uuid": filesystem.uuid})

    def find_filesystem(self, disk: Disk) -> Filesystem:
        content = self.facts.get(f"content:{disk.serial}")
        return Filesystem(state="READY", type=content["type"], uuid=content["uuid"])

    def is_grown(self, disk: Disk, _path: str) -> bool:
        return bool(self.facts.get(f"content:{disk.serial}")["size"] == disk.size_bytes)

    def grow(self, disk: Disk, path: str) -> None:
        assert self.facts.get(f"mount:{path}"), "grow of a filesystem that is not mounted"
        content = self.facts.get(f"content:{disk.serial}")
        self.facts.effect(f"content:{disk.serial}", content | {"size": disk.size_bytes})

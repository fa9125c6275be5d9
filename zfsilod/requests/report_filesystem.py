"""The request by which a client reports the state of a volume's filesystem to its server."""

from __future__ import annotations

from zfsilod.engine import plans
from zfsilod.model.errors import FailedPrecondition, InvalidArgument
from zfsilod.model.host_facts import FILESYSTEMS, Filesystem, FilesystemState
from zfsilod.model.names import UUID
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.rights import check_volume
from zfsilod.requests.volumes import need_publication, need_volume


class ReportFilesystem(Request[None]):
    """Record the state of a volume's filesystem as its client reports it; it only advances."""

    kind = "report"
    resource = ("volumes", "volume")
    volume: str
    host: str
    epoch: int
    state: FilesystemState
    type: str
    uuid: str
    operation: str = ""

    def authorise(self, view: View) -> None:
        check_volume(view, self.volume, self.host)

    def plan(self, view: View, inputs: None) -> Plan:
        volume = need_volume(view.txn, self.volume)
        publication = need_publication(view.txn, self.volume, self.host)
        if publication.epoch != self.epoch:
            raise FailedPrecondition(
                f"{self.volume} is published to {self.host} with epoch {publication.epoch}, not "
                f"{self.epoch}: connect again",
                reason="STALE_EPOCH",
                volume=self.volume,
            )
        reported = Filesystem(
            state=self.state,
            type=self.type,
            uuid=self.uuid,
            operation=self.operation if self.state == "FORMATTING" else "",
            host=self.host,
        )
        present = volume.filesystem
        if self.type not in FILESYSTEMS or not UUID.fullmatch(self.uuid):
            raise InvalidArgument(
                f"invalid filesystem {self.type[:40]!r} with UUID {self.uuid[:40]!r}: report "
                f"{' or '.join(FILESYSTEMS)}, and a UUID",
                reason="BAD_FILESYSTEM",
            )
        made = present.state in ("READY", "CLONED")
        if made and (self.state != "READY" or present.uuid != self.uuid):
            raise FailedPrecondition(
                f"{self.volume} already has an {present.type} filesystem: {present.uuid}",
                reason="FILESYSTEM_READY",
                volume=self.volume,
                uuid=present.uuid,
            )
        unchanged = reported == present
        return Plan(
            title=f"mark the filesystem of {self.volume} {self.state}",
            claims=(f"volume/{self.volume}",),
            actions=() if unchanged else plans.mark_filesystem(volume, reported),
            commit=(put(volume.but(filesystem=reported)),),
        )

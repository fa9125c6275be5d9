"""The request by which a client reports the state of a volume's filesystem to its server.

The state is in the record and on the zvol, as a mark. Either may be older than the other, after the
store or the pool was restored: the one that is further counts, so that a filesystem that was READY
once is never formatted again.

READY is on the zvol before the first mount, thus before the first byte of data. FORMATTING is only
in the record, which needs no unit: there is no data yet. If that record is lost, mkfs is refused on
a disk on which another mkfs has begun, since that disk is not blank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import FailedPrecondition, InvalidArgument
from zfsilod.model.host_facts import FILESYSTEMS, Filesystem, furthest
from zfsilod.model.marks import FILESYSTEM
from zfsilod.model.names import is_uuid
from zfsilod.requests.adoption import parse_filesystem_mark
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.rights import check_volume
from zfsilod.requests.volumes import need_publication, need_volume

if TYPE_CHECKING:
    from zfsilod.model.records import Publication, Volume
    from zfsilod.model.words import FilesystemState
    from zfsilod.requests.context import Context

REPORTED = ("FORMATTING", "READY")  # the others would let a filesystem be made again


class ReportFilesystem(Request[str]):
    """Record the state of a volume's filesystem as its client reports it; it only advances.

    Input: the mark on the zvol.
    """

    descends = True
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

    async def gather(self, context: Context, operation_id: str) -> str:
        with context.read() as txn:
            volume = need_volume(txn, self.volume)
        return await _mark(context, volume)

    def plan(self, view: View, inputs: str) -> Plan:
        volume = need_volume(view.txn, self.volume)
        self._check_publication(volume, need_publication(view.txn, self.volume, self.host))
        if self.state not in REPORTED:
            raise InvalidArgument(
                f"a host does not report the state {self.state}: report {' or '.join(REPORTED)}",
                reason="BAD_FILESYSTEM",
            )
        if self.type not in FILESYSTEMS or not is_uuid(self.uuid):
            raise InvalidArgument(
                f"invalid filesystem {self.type[:40]!r} with UUID {self.uuid[:40]!r}: report "
                f"{' or '.join(FILESYSTEMS)}, and a UUID",
                reason="BAD_FILESYSTEM",
            )
        marked = parse_filesystem_mark(inputs)
        self._check_progress(furthest(volume.filesystem, marked))
        reported = Filesystem(
            state=self.state,
            type=self.type,
            uuid=self.uuid,
            operation=self.operation if self.state == "FORMATTING" else "",
            host=self.host,
        )
        # A mark of an earlier version is kept current, since the one of the zvol counts.
        recorded = self.state == "FORMATTING" and marked.state == "NONE"
        unchanged = recorded or inputs == plans.filesystem_mark(reported)
        return Plan(
            title=f"mark the filesystem of {self.volume} {self.state}",
            claims=(f"volume/{self.volume}",),
            actions=() if unchanged else plans.mark_filesystem(volume, reported, inputs),
            commit=(put(volume.but(filesystem=reported)),),
        )

    def _check_publication(self, volume: Volume, publication: Publication) -> None:
        """Raise FailedPrecondition unless the publication lets its host write a filesystem."""
        if publication.epoch != self.epoch:
            raise FailedPrecondition(
                f"{self.volume} is published to {self.host} with epoch {publication.epoch}, not "
                f"{self.epoch}: connect again",
                reason="STALE_EPOCH",
                volume=self.volume,
            )
        if publication.readonly:
            raise FailedPrecondition(
                f"{self.volume} is published to {self.host} read-only, so this host makes no "
                "filesystem on it",
                reason="ACCESS_MODE",
                volume=self.volume,
            )
        if volume.mode == "BLOCK":
            raise FailedPrecondition(
                f"{self.volume} is a raw block volume, on which zfsilo makes no filesystem",
                reason="MODE",
                volume=self.volume,
            )

    def _check_progress(self, known: Filesystem) -> None:
        """Raise FailedPrecondition when the report does not continue what is known."""
        if known.state in ("READY", "CLONED"):
            if self.state != "READY" or known.uuid != self.uuid:
                raise FailedPrecondition(
                    f"{self.volume} already has an {known.type} filesystem: {known.uuid}",
                    reason="FILESYSTEM_READY",
                    volume=self.volume,
                    uuid=known.uuid,
                )
        elif known.state == "FORMATTING" and self.state == "FORMATTING":
            if known.uuid != self.uuid:
                raise FailedPrecondition(
                    f"the filesystem {known.uuid} may be half made on {self.volume}, so it is not "
                    f"formatted as {self.uuid}: stage it again",
                    reason="OTHER_FILESYSTEM",
                    volume=self.volume,
                    uuid=known.uuid,
                )
        elif known.state == "FORMATTING" and known.host not in ("", self.host):
            raise FailedPrecondition(
                f"host {known.host} formats {self.volume}, not {self.host}: stage it again",
                reason="FORMATTING",
                volume=self.volume,
                host=known.host,
            )


async def known_filesystem(context: Context, volume: Volume) -> Filesystem:
    """Return the filesystem of a volume, as the record or as the zvol knows it."""
    if volume.mode == "BLOCK" or volume.filesystem.state in ("READY", "CLONED"):
        return volume.filesystem
    return furthest(volume.filesystem, parse_filesystem_mark(await _mark(context, volume)))


async def _mark(context: Context, volume: Volume) -> str:
    zfs = context.machine.zfs
    return await context.look(lambda: zfs.find_mark(volume.dataset, FILESYSTEM))

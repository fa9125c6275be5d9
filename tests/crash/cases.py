"""One case or more of every request, each with what stands before it.

A request without a case fails tests/test_crash.py: give it one here, and it is cut at every point.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, NamedTuple

import zfsilod.requests
from tests.examples import TAKE
from zfsilod.model.host_facts import Disk, ListedZvol
from zfsilod.model.records import Trashed
from zfsilod.requests import adoption, orphans, pool_import
from zfsilod.requests.attach import Connect, Grow, MountAt, Stage
from zfsilod.requests.deletion import DeleteVolume, PurgeVolume, UndeleteVolume
from zfsilod.requests.detach import Clear, Disconnect, UnmountFrom, Unstage
from zfsilod.requests.hosts import CreateHost, DeleteHost, UpdateHost
from zfsilod.requests.publications import Publish, ReportFilesystem, Unpublish
from zfsilod.requests.request import Request
from zfsilod.requests.rotate_secrets import RefreshSecrets, RotateSecrets
from zfsilod.requests.snapshots import (
    CreateSnapshot,
    CreateSnapshotGroup,
    DeleteSnapshot,
    DeleteSnapshotGroup,
)
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume, UpdateVolume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.crash.life import Machine
    from tests.doubles import House
    from zfsilod.service.service import Service

GIB = 1 << 30
HOUR_S = 3600
OTHER = "iqn.2024-01.lab.other:host"
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
HOST = CreateHost(id="take", iqn=TAKE)
CREATE = CreateVolume(id="data", capacity_bytes=GIB, hosts=("take",))
PUBLISH = Publish(volume="data", host="take")
CONNECT = Connect(id="data", server="give", volume="data", restore="BOOT")
STAGE = Stage(id="data")
MOUNT = MountAt(id="data", path="/srv/data")
CREATED = (HOST, CREATE)
PUBLISHED = (*CREATED, PUBLISH)
CONNECTED = (*PUBLISHED, CONNECT)
STAGED = (*CONNECTED, STAGE)
MOUNTED = (*STAGED, MOUNT)
LARGER = UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB)
BLOCK = (HOST, CREATE.but(mode="BLOCK"), PUBLISH, CONNECT, STAGE)
SNAP = CreateSnapshot(id="monday", volume="data")
GIVE_UP = DeleteSnapshot(id="monday")
MORE = CREATE.but(id="more")
GROUP = CreateSnapshotGroup(id="both", volumes=("data", "more"))
COPY = CREATE.but(id="copy", capacity_bytes=2 * GIB, thin=False, source_snapshot="monday")
TWIN = CREATE.but(id="twin", source_volume="data")
CLONED = (*STAGED, TWIN, PUBLISH.but(volume="twin"), CONNECT.but(id="twin", volume="twin"))
UNPUBLISH = Unpublish(volume="data")
DELETE = DeleteVolume(id="data")
KEEP = DELETE.but(dependents="KEEP")
LEAVE = Disconnect(id="data")
SYNC = SyncVolume(id="data")
ROTATE = RotateSecrets(volume="data", host="take", force=True)
REFRESH = RefreshSecrets(server="give", ids=("data",))
RENAME = UpdateHost(id="take", mask=("iqn",), iqn="iqn.2024-01.lab.renamed:host")
SECOND = CreateHost(id="other", iqn=OTHER)
READ = PUBLISH.but(access_mode="MULTI_NODE_READER_ONLY")
SHARED = (HOST, SECOND, CREATE.but(access_modes=("MULTI_NODE_READER_ONLY",)), READ)
NO_ZVOL = ListedZvol(dataset="", guid="", size_bytes=0, thin=False, volblocksize=0, marks=())
ADOPT = adoption.AdoptVolume(id="data", zvol=NO_ZVOL)
NO_DISK = Disk(target="", serial="", size_bytes=0)

# What a rollback leaves, and why (patterns of names in Machine.state)
FORMATTED = (
    r"fact content:.*",  # a filesystem stays: there may be data on it
    r"fact zvol:.* zfsilo:filesystem",  # and so does the server's mark for it
    r"record volume data filesystem.*",
)
RENEWED = (  # a clone's filesystem has its own UUID from then on, and the server knows it
    r"fact content:.*",
    r"fact zvol:.* zfsilo:filesystem",
    r"record volume twin filesystem.*",
)
SEEN = (r"fact session:.* size", r"fact content:.* size")  # a size that was seen stays seen
EPOCH = (r"record volume data epoch",)  # counted up and never reused


class Case(NamedTuple):
    """A request, what was done before it, and what its rollback may leave."""

    name: str
    before: tuple[Request, ...]
    request: Request
    sticky: tuple[str, ...] = ()
    first: Request | None = None  # what the service does before it by itself, in its own operation
    meddle: tuple[str, ...] = ()  # facts that vanish before it, by the beginnings of their names
    retention_s: int = 0  # of the trash
    spoil: Callable[[Machine], None] | None = None  # what else somebody does before it
    find: Callable[[Service], Awaitable[Request]] | None = (
        None  # the request, when it is not known yet
    )
    many: bool = False  # many operations in one unit, as the timer's Sync of all volumes

    async def submit(self, house: House) -> object:
        """Ask for it, as a caller would."""
        if self.many:
            return await house.service.sync_all(caller="a test")
        request = self.request
        if self.find is not None:
            request = await self.find(house.service)
        return await house.service.submit(request, caller="a test")


async def purge(service: Service) -> Request:
    """Return the purge of what lies in the trash."""
    with service.store.read() as txn:
        return PurgeVolume(id=next(txn.scan(Trashed)).id)


async def clear(service: Service) -> Request:
    """Return the end of a session that no record knows, with all that is mounted of it."""
    iscsi = service.machine.iscsi
    (target,) = iscsi.sessions()
    disk = NO_DISK.but(target=target, serial=target.rpartition(":")[2])
    return Clear(id="data", disk=disk, paths=tuple(iscsi.users(disk)))


async def take_over(service: Service) -> Request:
    """Return the adoption of a zvol."""
    return await adoption.find(service, "tank/zfsilo/data", "data")


async def remove_all(service: Service) -> Request:
    """Return the removal of all orphans."""
    found = await orphans.find(service)
    return orphans.RemoveOrphans(names=tuple(each.name for each in found), force=True)


async def take_back(service: Service) -> Request:
    """Return the adoption of what lies in the trash."""
    (found,) = await pool_import.new_volumes(service)
    return found


async def take_snapshots(service: Service) -> Request:
    """Return the adoption of snapshots."""
    (found,) = await pool_import.new_cuts(service, pool_import.Rebuilt([], {}, []))
    return found


def forget(machine: Machine) -> None:
    """Lose the records, as with the state directory."""
    _forget(machine, b"volume/", b"publication/", b"attachment/", b"trashed/")


def forget_use(machine: Machine) -> None:
    """Lose the records of what is used here, as when an operation was abandoned."""
    _forget(machine, b"attachment/")


def forget_snapshots(machine: Machine) -> None:
    """Lose the records of snapshots, as an older version's adoption did."""
    _forget(machine, b"snapshot/", b"snapshotgroup/", b"dependent/")


def _forget(machine: Machine, *prefixes: bytes) -> None:
    with machine.store.write() as txn:
        for key, _value in list(txn._range(b"", "")):
            if key.startswith(prefixes):
                txn._handle.delete(key)


def disown(machine: Machine) -> None:
    """Make somebody else's zvol of a volume: no record, and no mark of ours."""
    forget(machine)
    zvol = machine.host.facts.memory["zvol:tank/zfsilo/data"]
    own = {n: v for n, v in zvol["properties"].items() if not n.startswith("zfsilo:")}
    machine.host.facts.memory["zvol:tank/zfsilo/data"] = zvol | {"uid": "", "properties": own}


def break_session(machine: Machine) -> None:
    """Break the connection of a session, which iscsid goes on with in vain."""
    for name, fact in machine.host.facts.memory.items():
        if name.startswith("session:"):
            machine.host.facts.memory[name] = fact | {"lost": True}


SERVER = (
    Case("create", (HOST,), CREATE),
    Case("create-thick", (HOST,), CREATE.but(thin=False, properties=(("compression", "lz4"),))),
    Case("delete", CREATED, DELETE),
    Case("delete-to-trash", CREATED, DELETE, retention_s=HOUR_S),
    Case("undelete", (*CREATED, DELETE), UndeleteVolume(id="data"), retention_s=HOUR_S),
    Case("purge", (*CREATED, DELETE), PurgeVolume(id=""), retention_s=HOUR_S, find=purge),
    Case("delete-keep", (*CREATED, SNAP), KEEP),
    Case("snapshot", CREATED, SNAP),
    Case("snapshot-delete", (*CREATED, SNAP), DeleteSnapshot(id="monday")),
    Case("snapshot-delete-cloned", (*CREATED, SNAP, COPY), DeleteSnapshot(id="monday")),
    Case("snapshot-delete-trashed", (*CREATED, SNAP, KEEP), DeleteSnapshot(id="monday")),
    Case("snapshot-group", (*CREATED, MORE), GROUP),
    Case("snapshot-group-delete", (*CREATED, MORE, GROUP), DeleteSnapshotGroup(id="both")),
    Case("create-from-snapshot", (*CREATED, SNAP), COPY),
    Case("create-from-volume", CREATED, TWIN),
    Case("delete-clone", (*CREATED, TWIN), DELETE.but(id="twin")),
    Case("delete-last-clone", (*CREATED, SNAP, COPY, GIVE_UP), DELETE.but(id="copy")),
    Case("adopt", CREATED, ADOPT, spoil=forget, find=take_over),
    Case(
        "adopt-trashed",
        (*CREATED, SNAP, KEEP),
        pool_import.AdoptTrashed(id="data", zvol=NO_ZVOL),
        spoil=forget,
        find=take_back,
    ),
    Case(
        "adopt-snapshots",
        (*CREATED, MORE, GROUP),
        pool_import.AdoptCut(id="both", refs=()),
        spoil=forget_snapshots,
        find=take_snapshots,
    ),
    Case("adopt-foreign", CREATED, ADOPT, spoil=disown, find=take_over),
    Case("update-size", PUBLISHED, LARGER),
    Case(
        "update-all",
        CREATED,
        LARGER.but(
            mask=("capacity_bytes", "properties", "labels", "hosts"),
            labels=(("tier", "gold"),),
            properties=(("compression", "zstd"), ("sync", "always")),
            hosts=("*",),
        ),
    ),
    Case("publish", CREATED, PUBLISH),
    Case("publish-readonly", CREATED, PUBLISH.but(readonly=True)),
    Case("publish-again", (*PUBLISHED, UNPUBLISH), PUBLISH),
    Case("publish-repair", PUBLISHED, PUBLISH, meddle=("acl:", "mapped:", "enabled:")),
    Case("publish-second", SHARED, READ.but(host="other")),
    Case(
        "publish-force",
        (*PUBLISHED, SECOND),
        PUBLISH.but(host="other", force=True),
        first=UNPUBLISH.but(host="take", fence=True, grace_s=0),
    ),
    Case("rotate-secrets", (*SHARED, READ.but(host="other")), RotateSecrets(volume="data")),
    Case("rotate-secrets-forced", CONNECTED, ROTATE),
    Case("rotate-secrets-later", CONNECTED, ROTATE.but(force=False)),
    Case("rotate-secrets-due", (*CONNECTED, ROTATE.but(force=False)), ROTATE),
    Case("rotate-secrets-again", (*PUBLISHED, ROTATE), ROTATE),
    Case("publish-renamed", (*PUBLISHED, ROTATE, RENAME), PUBLISH),
    Case("unpublish-rotated", (*PUBLISHED, ROTATE), UNPUBLISH),
    Case("unpublish", PUBLISHED, UNPUBLISH.but(host="take")),
    Case("unpublish-one", (*SHARED, READ.but(host="other")), UNPUBLISH.but(host="take")),
    Case("unpublish-all", (*SHARED, READ.but(host="other")), UNPUBLISH),
    Case("unpublish-half", PUBLISHED, UNPUBLISH, meddle=("mapped:", "enabled:")),
    Case(
        "publish-over-session",
        (*CONNECTED, SECOND),
        PUBLISH.but(host="other", force=True),
        first=UNPUBLISH.but(host="take", fence=True, grace_s=0),
    ),
    Case("fence", CONNECTED, UNPUBLISH.but(fence=True, grace_s=0)),
    Case(
        "report",
        PUBLISHED,
        ReportFilesystem(
            volume="data",
            host="take",
            epoch=1,
            state="FORMATTING",
            type="ext4",
            uuid=UUID,
            operation="01jd",
        ),
    ),
)
CONSUMER = (
    Case("connect", PUBLISHED, CONNECT),
    Case("connect-publish", CREATED, CONNECT.but(publish_if_needed=True), sticky=EPOCH),
    Case("connect-repair", CONNECTED, CONNECT, meddle=("session:",)),
    Case("disconnect", CONNECTED, LEAVE),
    Case("disconnect-release", (*CREATED, CONNECT.but(publish_if_needed=True)), LEAVE),
    Case("disconnect-force", MOUNTED, LEAVE.but(force=True)),
    Case("connect-rotated", (*CONNECTED, ROTATE), CONNECT, meddle=("session:",)),
    Case("refresh-secrets", (*MOUNTED, ROTATE), REFRESH),
    Case("refresh-secrets-lost", (*MOUNTED, ROTATE), REFRESH, spoil=break_session),
    Case("clear", MOUNTED, Clear(id="", disk=NO_DISK, paths=()), spoil=forget_use, find=clear),
    Case("stage", CONNECTED, STAGE, sticky=FORMATTED),
    Case("stage-again", (*STAGED, Unstage(id="data")), STAGE.but(path="/mnt/data")),
    Case("stage-clone", CLONED, STAGE.but(id="twin"), sticky=RENEWED),
    Case("stage-clone-readonly", CLONED, STAGE.but(id="twin", readonly=True)),
    Case("unstage", STAGED, Unstage(id="data")),
    Case("unstage-force", MOUNTED, Unstage(id="data", force=True)),
    Case("mount", STAGED, MOUNT),
    Case("mount-second", MOUNTED, MOUNT.but(path="/srv/readonly", readonly=True)),
    Case("mount-again", MOUNTED, MOUNT, meddle=("mount:/srv",)),
    Case("mount-block", BLOCK, MOUNT),
    Case("unmount", MOUNTED, UnmountFrom(id="data", path="/srv/data")),
    Case("unmount-all", (*MOUNTED, MOUNT.but(path="/srv/second")), UnmountFrom(id="data")),
    Case("unmount-block", (*BLOCK, MOUNT), UnmountFrom(id="data")),
    Case("unmount-force", MOUNTED, UnmountFrom(id="data", force=True)),
    Case("grow", (*MOUNTED, LARGER), Grow(id="data"), sticky=SEEN),
)
BOTH = (
    Case("sync", MOUNTED, SYNC, meddle=("acl:", "mapped:", "mount:", "session:")),
    Case(
        "sync-all",
        (*PUBLISHED, CREATE.but(id="more"), PUBLISH.but(volume="more")),
        SYNC,
        meddle=("backstore:", "lun:", "acl:", "mapped:"),
        many=True,
    ),
    Case("remove-orphans", MOUNTED, orphans.RemoveOrphans(names=()), spoil=forget, find=remove_all),
    Case("create-host", (), HOST),
    Case("update-host", (HOST,), UpdateHost(id="take", mask=("iqn",), iqn=OTHER)),
    Case("delete-host", (HOST,), DeleteHost(id="take")),
)
CASES = (*SERVER, *CONSUMER, *BOTH)


def requests() -> Iterator[type[Request]]:
    """Yield every request that there is, in whichever module."""
    for module in pkgutil.iter_modules(zfsilod.requests.__path__, "zfsilod.requests."):
        if not module.ispkg:
            importlib.import_module(module.name)
    waiting = list(Request.__subclasses__())
    while waiting:
        each = waiting.pop()
        waiting += each.__subclasses__()
        if each.kind:
            yield each

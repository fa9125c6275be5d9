"""Cases of the crash tests: at least one for every request, with the requests before it.

A request without a case fails tests/test_crash.py: add it here, and it gets a fault at every point.
"""

from __future__ import annotations

import importlib
import pkgutil
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import zfsilod.requests
from tests.examples import TAKE
from tests.service_fixture import SETTINGS, administrator
from zfsilod.host import transports
from zfsilod.model.host_facts import Disk, Filesystem, ListedZvol
from zfsilod.model.records import Attachment, Trashed, VolumeKey
from zfsilod.model.replica import SendJob
from zfsilod.requests import adoption, orphans, pool_import
from zfsilod.requests.attach import Grow, MountAt, Stage
from zfsilod.requests.clones import need_snapshot
from zfsilod.requests.connect import Connect, FollowServer
from zfsilod.requests.deletion import DeleteVolume, PurgeVolume, UndeleteVolume
from zfsilod.requests.detach import Clear, Disconnect, EndSession, EndWait, UnmountFrom, Unstage
from zfsilod.requests.hosts import CreateHost, DeleteHost, UpdateHost
from zfsilod.requests.io_limits import LimitSessions
from zfsilod.requests.open_ports import OpenPorts
from zfsilod.requests.ownership import ClaimPool
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.put_back import PutBackVolume, RemoveExport
from zfsilod.requests.receive import ReceiveReplica
from zfsilod.requests.replication import EndReplication, ReplicateVolume
from zfsilod.requests.replication_policies import (
    CreateReplicationPolicy,
    DeleteReplicationPolicy,
    UpdateReplicationPolicy,
)
from zfsilod.requests.report_filesystem import ReportFilesystem
from zfsilod.requests.request import Request
from zfsilod.requests.rotate_secrets import RefreshSecrets, RotateSecrets
from zfsilod.requests.snapshot_policies import (
    CreateSnapshotPolicy,
    DeleteSnapshotPolicy,
    UpdateSnapshotPolicy,
)
from zfsilod.requests.snapshots import (
    CreateSnapshot,
    CreateSnapshotGroup,
    DeleteSnapshot,
    DeleteSnapshotGroup,
)
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volume_keys import RotateVolumeKey
from zfsilod.requests.volumes import CreateVolume, UpdateVolume, need_volume
from zfsilod.requests.whole_paths import AttachVolume, DetachVolume
from zfsilod.service.orphan_scan import find_orphans
from zfsilod.service.pool_scan import find_zvol, unknown_snapshots, unknown_volumes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.crash.simulated_machine import SimulatedMachine
    from tests.service_fixture import ServiceFixture
    from zfsilod.model.settings import Settings
    from zfsilod.service.service import Service

GIB = 1 << 30
HOUR_S = 3600
OTHER = "iqn.2024-01.lab.other:host"
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
HOST = CreateHost(id="take", iqn=TAKE)
CREATE = CreateVolume(id="data", capacity_bytes=GIB, hosts=("take",))
PUBLISH = Publish(volume="data", host="take")
ENCRYPTED = (HOST, CREATE.but(encrypt=True))
ROTATE_KEY = RotateVolumeKey(id="data")
CONNECT = Connect(id="data", server="give", volume="data", restore="BOOT")
STAGE = Stage(id="data")
MOUNT = MountAt(id="data", path="/srv/data")
ATTACH = AttachVolume(id="data", server="give", volume="data", path="/srv/data", restore="BOOT")
DETACH = DetachVolume(id="data")
CREATED = (HOST, CREATE)
PUBLISHED = (*CREATED, PUBLISH)
TWO_PUBLISHED = (*PUBLISHED, CREATE.but(id="more"), PUBLISH.but(volume="more"))
CONNECTED = (*PUBLISHED, CONNECT)
STAGED = (*CONNECTED, STAGE)
MOUNTED = (*STAGED, MOUNT)
FAST = CREATE.but(limit_read_iops=500)
FAST_CONNECTED = (HOST, FAST, PUBLISH, CONNECT)
FASTER = UpdateVolume(id="data", mask=("limit_read_iops",), limit_read_iops=900)
LARGER = UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB)
BLOCK = (HOST, CREATE.but(mode="BLOCK"), PUBLISH, CONNECT, STAGE)
SNAP = CreateSnapshot(id="monday", volume="data")
TAKEN = SNAP.but(policy="nightly")
NIGHTLY = CreateSnapshotPolicy(id="nightly", calendar="daily", grid="7x1d")
HOURLY = CreateReplicationPolicy(id="hourly", peer="other", calendar="hourly")
RELEASE = DeleteSnapshot(id="monday")
MORE = CREATE.but(id="more")
GROUP = CreateSnapshotGroup(id="both", volumes=("data", "more"))
COPY = CREATE.but(id="copy", capacity_bytes=2 * GIB, thin=False, source_snapshot="monday")
TWIN = CREATE.but(id="twin", source_volume="data")
CLONED = (*STAGED, TWIN, PUBLISH.but(volume="twin"), CONNECT.but(id="twin", volume="twin"))
UNPUBLISH = Unpublish(volume="data")
DELETE = DeleteVolume(id="data")
WITHDRAW = DELETE.but(unpublish=True)
KEEP = DELETE.but(dependents="KEEP")
LEAVE = Disconnect(id="data")
REPORT = ReportFilesystem(
    volume="data",
    host="take",
    epoch=1,
    state="FORMATTING",
    type="ext4",
    uuid=UUID,
    operation="01jd",
)
REPLICATE = ReplicateVolume(id="data", peer="other")
END_REPLICATION = EndReplication(id="data", peer="other")
TO_SEND = (*CREATED, CreateSnapshot(id="replica-data-other-1", volume="data", peer="other"))
SENT = (*TO_SEND, REPLICATE)
SECOND_SNAP = CreateSnapshot(id="replica-data-other-2", volume="data", peer="other")
RECEIVE = ReceiveReplica(
    id="twin",
    peer="give",
    uid="d" * 32,
    capacity_bytes=GIB,
    volblocksize=16384,
    mode="FILESYSTEM",
    filesystem=Filesystem(),
    snapshot_uid="",
    snapshot_guid="",
)
SYNC = SyncVolume(id="data")
ROTATE = RotateSecrets(volume="data", host="take", force=True)
REFRESH = RefreshSecrets(server="give", ids=("data",))
RENAME = UpdateHost(id="take", mask=("iqn",), iqn="iqn.2024-01.lab.renamed:host")
NEW_MACHINE = UpdateHost(id="take", mask=("machine",))
SECOND = CreateHost(id="other", iqn=OTHER)
READ = PUBLISH.but(access_mode="MULTI_NODE_READER_ONLY")
SHARED = (HOST, SECOND, CREATE.but(access_modes=("MULTI_NODE_READER_ONLY",)), READ)
NO_ZVOL = ListedZvol(dataset="", guid="", size_bytes=0, thin=False, volblocksize=0, marks=())
ADOPT = adoption.AdoptVolume(id="data", zvol=NO_ZVOL)
PUT_BACK = PutBackVolume(id="data", uid="", zvol=NO_ZVOL)
NO_DISK = Disk(target="", serial="", size_bytes=0)

# Names in SimulatedMachine.state, as patterns, that a rollback may leave changed
BESIDE = "10.88.0.1:3260"
OPENED = (r"fact portals:.*",)
"""A rollback leaves the portals of a target that was there: Portals.revert."""
UNRESERVED = (r"fact aptpl:.*",)
"""The kernel forgets the reservations of a client with its ACL, which a rollback makes again."""
FORMATTED = (
    r"fact content:.*",  # a filesystem stays: it may hold data
    r"fact zvol:.* zfsilo:filesystem",  # the server's mark for it stays too
    r"record volume data filesystem.*",
)
UUID_REGENERATED = (  # the new UUID of a clone's filesystem stays, on the server too
    r"fact content:.*",
    r"fact zvol:.* zfsilo:filesystem",
    r"record volume twin filesystem.*",
)
CLIENT_SIZE = (
    r"fact session:.* size",
    r"fact content:.* size",
)  # a new size that the client has read
EPOCH = (  # counted up and never reused, also by an operation that is rolled back
    r"fact zvol:.* zfsilo:epoch",
    r"record volume \S+ epoch",
)

UNLIMITED = (r"fact session:.* limited",)
"""What a rollback leaves: limits apply to a session, although they did not before."""
KEPT_FOR_PEER = (  # the next replication goes on with the same snapshot
    r"fact peer:.*",
    r"fact bookmark:.*",
    r"fact sent:.*",
    r"record replication .*",
)
RECEIVED = (  # what was received stays, and its record with it
    r"fact zvol:tank/zfsilo/twin.*",
    r"fact replica-.*",
    r"record volume twin.*",
)
LOADED = (r"fact key:.*",)  # a key stays loaded


class Case(NamedTuple):
    """A request, the requests before it, and the differences that its rollback may leave."""

    name: str
    before: tuple[Request[Any], ...]
    request: Request[Any]
    may_remain: tuple[str, ...] = ()
    prerequisite: Request[Any] | None = None  # that the service submits itself
    lost: tuple[str, ...] = ()  # facts removed before it, by the start of their names
    retention_s: int = 0  # of the trash
    damage: Callable[[SimulatedMachine], None] | None = None  # another change before it
    find: Callable[[Service], Awaitable[Request[Any]]] | None = None  # returns the request
    batch: bool = False  # many operations in one unit: the sync of all volumes
    several: bool = False  # the server has several portals, and the client has multipathd

    @property
    def settings(self) -> Settings:
        """The settings of the machine."""
        portals = (*SETTINGS.export.portals, BESIDE) if self.several else SETTINGS.export.portals
        export = SETTINGS.export.but(portals=portals)
        return SETTINGS.but(trash_retention_s=self.retention_s, export=export)

    async def submit(self, fixture: ServiceFixture) -> object:
        """Submit the request."""
        if self.batch:
            return await fixture.service.reconciler.sync_all(caller=administrator("a test"))
        request = self.request
        if self.find is not None:
            request = await self.find(fixture.service)
        return await fixture.service.submit(request, caller=administrator("a test"))


async def purge(service: Service) -> Request[Any]:
    """Return the purge of the volume in the trash."""
    with service.context.store.read() as txn:
        return PurgeVolume(id=next(txn.scan(Trashed)).id)


async def receive(service: Service) -> Request[Any]:
    """Return the receive of the snapshot of volume data, as of another server."""
    with service.context.store.read() as txn:
        snapshot = need_snapshot(txn, SNAP.id)
    return RECEIVE.but(snapshot_uid=snapshot.uid, snapshot_guid=snapshot.guid)


def save_reservations(machine: SimulatedMachine) -> None:
    """Save persistent reservations of two clients, as the kernel does."""
    with machine.store.read() as txn:
        volume = need_volume(txn, "data")
    machine.host.facts.effect(f"aptpl:{volume.uid}", [TAKE, OTHER])


def reboot(machine: SimulatedMachine) -> None:
    """Remove what the kernel of the server forgets at a boot, before the first pass after it."""
    machine.host.facts.reboot()


def give_stream(machine: SimulatedMachine) -> None:
    """Let the worker of a receive get the stream of that snapshot."""

    def open_stream(_operation: str) -> int:
        with machine.store.read() as txn:
            snapshot, volume = need_snapshot(txn, SNAP.id), need_volume(txn, SNAP.volume)
        job = SendJob(
            dataset=volume.dataset, volume_uid=volume.uid, uid=snapshot.uid, guid=snapshot.guid
        )
        output, stream = socket.socketpair()
        with output:  # it is small: a socket holds it
            machine.host.replicas.send(job, output.fileno())
        return stream.detach()

    machine.host.open_stream = open_stream


async def clear(service: Service) -> Request[Any]:
    """Return the request that ends a session without a record, and its mounts."""
    adapters = transports.sessions(service.context.machine)
    ((adapter, target),) = ((one, target) for one in adapters for target in one.sessions())
    disk = NO_DISK.but(target=target, serial=target.rpartition(":")[2])
    return Clear(id="data", disk=disk, paths=tuple(adapter.users(disk)))


async def adopt_zvol(service: Service) -> Request[Any]:
    """Return the adoption of a zvol."""
    return await find_zvol(service.context, "tank/zfsilo/data", "data")


async def put_back(service: Service) -> Request[Any]:
    """Return the request that gives a renamed zvol its name back."""
    return await find_zvol(service.context, "tank/zfsilo/aside", "")


async def put_back_copy(service: Service) -> Request[Any]:
    """Return the request that puts a copy in place of the zvol."""
    return await find_zvol(service.context, "tank/zfsilo/data", "", accept_copy=True)


async def remove_all(service: Service) -> Request[Any]:
    """Return the removal of all orphans."""
    names = tuple(orphan.name for orphan in await find_orphans(service.context))
    return orphans.RemoveOrphans(names=names, force=True)


async def adopt_trashed(service: Service) -> Request[Any]:
    """Return the adoption of the volume in the trash."""
    (adoption_request,) = await unknown_volumes(service.context)
    return adoption_request


async def adopt_snapshots(service: Service) -> Request[Any]:
    """Return the adoption of snapshots."""
    (adoption_request,) = (await unknown_snapshots(service.context))[0]
    return adoption_request


def lose_records(machine: SimulatedMachine) -> None:
    """Remove the records, as when the state directory is lost."""
    _lose(machine, b"volume/", b"publication/", b"attachment/", b"trashed/")


def lose_attachment(machine: SimulatedMachine) -> None:
    """Remove the attachment, as when an operation was abandoned."""
    _lose(machine, b"attachment/")


def lose_snapshots(machine: SimulatedMachine) -> None:
    """Remove the records of snapshots, as the adoption of an older version did."""
    _lose(machine, b"snapshot/", b"snapshotgroup/", b"dependent/")


def _lose(machine: SimulatedMachine, *prefixes: bytes) -> None:
    with machine.store.write() as txn:
        for key, _value in list(txn.items()):
            if key.startswith(prefixes):
                bucket, _slash, name = key.decode().partition("/")
                txn.drop_raw(bucket, name)


def disown(machine: SimulatedMachine) -> None:
    """Remove the record and the properties that make a zvol one of zfsilo."""
    lose_records(machine)
    zvol = machine.host.facts.memory["zvol:tank/zfsilo/data"]
    own = {n: v for n, v in zvol["properties"].items() if not n.startswith("zfsilo:")}
    machine.host.facts.memory["zvol:tank/zfsilo/data"] = zvol | {"uid": "", "properties": own}


def rename_zvol(machine: SimulatedMachine) -> None:
    """Rename the zvol by hand."""
    memory = machine.host.facts.memory
    memory["zvol:tank/zfsilo/aside"] = memory.pop("zvol:tank/zfsilo/data")


def replace_zvol(machine: SimulatedMachine) -> None:
    """Replace the zvol by a copy, as zfs receive makes one: another guid, no local marks."""
    memory = machine.host.facts.memory
    zvol = memory["zvol:tank/zfsilo/data"]
    own = {"volblocksize": zvol["properties"]["volblocksize"]}
    copy = zvol | {"uid": "", "guid": "4711", "properties": own, "received": zvol["properties"]}
    memory["zvol:tank/zfsilo/data"] = copy


def lose_key(machine: SimulatedMachine) -> None:
    """Remove what the store knows of the key of the volume, as an adoption leaves it."""
    with machine.store.write() as txn:
        for key in list(txn.scan(VolumeKey)):
            txn.drop(key.bucket(), key.key)
            txn.drop("secret", key.secret)


def break_session(machine: SimulatedMachine) -> None:
    """Break the connection of each session; iscsid tries to restore it without success."""
    for name, fact in machine.host.facts.memory.items():
        if name.startswith("session:"):
            machine.host.facts.memory[name] = fact | {"lost": True}


def move_server(machine: SimulatedMachine) -> None:
    """Break each session at an address that the server does not have any more."""
    with machine.store.write() as txn:
        for attachment in list(txn.scan(Attachment)):
            is_nvme = attachment.disk.target.startswith("nqn.")
            former = "10.77.0.9:4420" if is_nvme else "10.77.0.9:3260"
            txn.put(attachment.but(portals=(former,)))
    for name, fact in machine.host.facts.memory.items():
        if name.startswith("session:"):
            port = "4420" if name.startswith("session:nqn.") else "3260"
            former_portal = {"lost": True, "portal": f"10.77.0.9:{port}"}
            machine.host.facts.memory[name] = fact | former_portal


def add_portal(machine: SimulatedMachine) -> None:
    """Let each live session be at another address than the present one of the server."""
    move_server(machine)
    for name, fact in machine.host.facts.memory.items():
        if name.startswith("session:"):
            live = {key: value for key, value in fact.items() if key not in ("lost", "beside")}
            machine.host.facts.memory[name] = live


SERVER = (
    Case("create", (HOST,), CREATE),
    Case("create-thick", (HOST,), CREATE.but(thin=False, properties=(("compression", "lz4"),))),
    Case("create-encrypted", (HOST,), ENCRYPTED[1]),
    Case("create-from-encrypted", ENCRYPTED, TWIN, may_remain=LOADED, lost=("key:",)),
    Case("delete-encrypted", ENCRYPTED, DELETE),
    Case("delete-encrypted-clone", (*ENCRYPTED, TWIN), DELETE.but(id="twin"), retention_s=HOUR_S),
    Case(
        "purge-encrypted",
        (*ENCRYPTED, DELETE),
        PurgeVolume(id=""),
        retention_s=HOUR_S,
        find=purge,
    ),
    Case("publish-encrypted", ENCRYPTED, PUBLISH, may_remain=LOADED, lost=("key:",)),
    Case("replicate", TO_SEND, REPLICATE, may_remain=KEPT_FOR_PEER),
    Case("replicate-more", (*SENT, SECOND_SNAP), REPLICATE, may_remain=KEPT_FOR_PEER),
    Case("end-replication", SENT, END_REPLICATION),
    Case(
        "receive",
        (*CREATED, SNAP),
        RECEIVE,
        find=receive,
        damage=give_stream,
        may_remain=RECEIVED,
    ),
    Case("rotate-key", (*ENCRYPTED, PUBLISH), ROTATE_KEY),
    Case(
        "rotate-key-again",
        (*ENCRYPTED, ROTATE_KEY),
        ROTATE_KEY,
        may_remain=LOADED,
        lost=("key:",),
    ),
    Case("rotate-key-lost", ENCRYPTED, ROTATE_KEY, damage=lose_key),
    Case("delete", CREATED, DELETE),
    Case("delete-to-trash", CREATED, DELETE, retention_s=HOUR_S),
    Case("delete-published", PUBLISHED, WITHDRAW),
    Case("delete-published-to-trash", PUBLISHED, WITHDRAW, retention_s=HOUR_S),
    Case("undelete", (*CREATED, DELETE), UndeleteVolume(id="data"), retention_s=HOUR_S),
    Case("purge", (*CREATED, DELETE), PurgeVolume(id=""), retention_s=HOUR_S, find=purge),
    Case("claim-pool", (), ClaimPool(root="tank/zfsilo")),
    Case("delete-keep", (*CREATED, SNAP), KEEP),
    Case("snapshot", CREATED, SNAP),
    Case("snapshot-delete", (*CREATED, SNAP), DeleteSnapshot(id="monday")),
    Case("snapshot-prune", (*CREATED, TAKEN), DeleteSnapshot(id="monday", pruned_by="nightly")),
    Case("create-policy", (), NIGHTLY),
    Case(
        "update-policy", (NIGHTLY,), UpdateSnapshotPolicy(id="nightly", mask=("grid",), grid="1x1h")
    ),
    Case("delete-policy", (NIGHTLY,), DeleteSnapshotPolicy(id="nightly")),
    Case("create-replication-policy", (), HOURLY),
    Case(
        "update-replication-policy",
        (HOURLY,),
        UpdateReplicationPolicy(id="hourly", mask=("volumes",), volumes=("data",)),
    ),
    Case("delete-replication-policy", (HOURLY,), DeleteReplicationPolicy(id="hourly")),
    Case("snapshot-delete-cloned", (*CREATED, SNAP, COPY), DeleteSnapshot(id="monday")),
    Case("snapshot-delete-trashed", (*CREATED, SNAP, KEEP), DeleteSnapshot(id="monday")),
    Case("snapshot-group", (*CREATED, MORE), GROUP),
    Case("snapshot-group-delete", (*CREATED, MORE, GROUP), DeleteSnapshotGroup(id="both")),
    Case("create-from-snapshot", (*CREATED, SNAP), COPY),
    Case("create-from-volume", CREATED, TWIN),
    Case("delete-clone", (*CREATED, TWIN), DELETE.but(id="twin")),
    Case("delete-last-clone", (*CREATED, SNAP, COPY, RELEASE), DELETE.but(id="copy")),
    Case("adopt", CREATED, ADOPT, damage=lose_records, find=adopt_zvol),
    Case(
        "adopt-trashed",
        (*CREATED, SNAP, KEEP),
        pool_import.AdoptTrashed(id="data", zvol=NO_ZVOL),
        damage=lose_records,
        find=adopt_trashed,
    ),
    Case(
        "adopt-snapshots",
        (*CREATED, MORE, GROUP),
        pool_import.AdoptSnapshots(id="both", refs=()),
        damage=lose_snapshots,
        find=adopt_snapshots,
    ),
    Case("adopt-published", PUBLISHED, ADOPT, damage=lose_records, find=adopt_zvol),
    Case("adopt-foreign", CREATED, ADOPT, damage=disown, find=adopt_zvol),
    Case("put-back", PUBLISHED, PUT_BACK, damage=rename_zvol, find=put_back),
    Case(
        "put-back-copy",
        PUBLISHED,
        PUT_BACK,
        damage=replace_zvol,
        find=put_back_copy,
        prerequisite=RemoveExport(volume="data"),
    ),
    Case("remove-export", PUBLISHED, RemoveExport(volume="data"), damage=replace_zvol),
    Case("delete-record", CREATED, DELETE.but(record_only=True), damage=replace_zvol),
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
    Case("update-hosts", CREATED, UpdateVolume(id="data", mask=("hosts",), hosts=("other",))),
    Case("publish", CREATED, PUBLISH),
    Case("publish-readonly", CREATED, PUBLISH.but(readonly=True)),
    Case(
        "publish-reserved",
        (*PUBLISHED, UNPUBLISH),
        PUBLISH,
        UNRESERVED,
        damage=save_reservations,
    ),
    Case("publish-again", (*PUBLISHED, UNPUBLISH), PUBLISH),
    Case(
        "publish-repair",
        PUBLISHED,
        PUBLISH,
        lost=("acl:", "mapped:", "enabled:"),
        may_remain=OPENED,
    ),
    Case("publish-second", SHARED, READ.but(host="other")),
    Case("publish-second-after-boot", SHARED, READ.but(host="other"), damage=reboot),
    Case(
        "publish-force",
        (*PUBLISHED, SECOND),
        PUBLISH.but(host="other", force=True),
        prerequisite=UNPUBLISH.but(host="take", fence=True, grace_s=0),
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
    Case("unpublish-half", PUBLISHED, UNPUBLISH, lost=("mapped:", "enabled:")),
    Case(
        "unpublish-reserved",
        PUBLISHED,
        UNPUBLISH,
        damage=save_reservations,
        may_remain=UNRESERVED,
    ),
    Case(
        "unpublish-one-reserved",
        (*SHARED, READ.but(host="other")),
        UNPUBLISH.but(host="take"),
        damage=save_reservations,
        may_remain=UNRESERVED,
    ),
    Case(
        "publish-over-session",
        (*CONNECTED, SECOND),
        PUBLISH.but(host="other", force=True),
        prerequisite=UNPUBLISH.but(host="take", fence=True, grace_s=0),
    ),
    Case("fence", CONNECTED, UNPUBLISH.but(fence=True, grace_s=0)),
    Case("publish-limited", (HOST, FAST), PUBLISH),
    Case("unpublish-limited", (HOST, FAST, PUBLISH), UNPUBLISH),
    Case("fence-limited", FAST_CONNECTED, UNPUBLISH.but(fence=True, grace_s=0)),
    Case("limit", CONNECTED, FASTER),
    Case("limit-again", FAST_CONNECTED, FASTER, UNLIMITED),
    Case("remove-limits", FAST_CONNECTED, FASTER.but(limit_read_iops=0), UNLIMITED),
    Case("limit-sessions", FAST_CONNECTED, LimitSessions(), UNLIMITED),
    Case("adopt-limited", (HOST, FAST), ADOPT, damage=lose_records, find=adopt_zvol),
    Case("report", PUBLISHED, REPORT),
    Case("report-ready", (*PUBLISHED, REPORT), REPORT.but(state="READY", operation="")),
)
CLIENT = (
    Case("connect", PUBLISHED, CONNECT),
    Case("connect-publish", CREATED, CONNECT.but(publish_if_needed=True)),
    Case("connect-repair", CONNECTED, CONNECT, lost=("session:",)),
    Case("disconnect", CONNECTED, LEAVE),
    Case("end-session", CONNECTED, EndSession(id="data", epoch=1)),
    Case("end-wait", CONNECTED, EndWait(id="data")),
    Case("disconnect-release", (*CREATED, CONNECT.but(publish_if_needed=True)), LEAVE),
    Case("disconnect-force", MOUNTED, LEAVE.but(force=True)),
    Case("connect-rotated", (*CONNECTED, ROTATE), CONNECT, lost=("session:",)),
    Case(
        "follow-server",
        MOUNTED,
        FollowServer(id="data"),
        damage=move_server,
        may_remain=(r"fact session:.* (lost|portal)",),
    ),
    Case("refresh-secrets", (*MOUNTED, ROTATE), REFRESH),
    Case("refresh-secrets-lost", (*MOUNTED, ROTATE), REFRESH, damage=break_session),
    Case(
        "clear", MOUNTED, Clear(id="", disk=NO_DISK, paths=()), damage=lose_attachment, find=clear
    ),
    Case("attach", PUBLISHED, ATTACH, may_remain=FORMATTED),
    Case("attach-again", (*MOUNTED, DETACH), ATTACH),
    Case("attach-connected", CONNECTED, ATTACH, may_remain=FORMATTED),
    Case("attach-lost", MOUNTED, ATTACH, lost=("mount:", "session:")),
    Case("attach-block", BLOCK, ATTACH),
    Case("detach", MOUNTED, DETACH),
    Case("detach-staged", (*MOUNTED, MOUNT.but(path="/srv/second")), DETACH.but(state="STAGED")),
    Case("detach-block", (*BLOCK, MOUNT), DETACH),
    Case("detach-force", MOUNTED, DETACH.but(force=True)),
    Case("stage", CONNECTED, STAGE, may_remain=FORMATTED),
    Case("stage-again", (*STAGED, Unstage(id="data")), STAGE.but(path="/mnt/data")),
    Case("stage-clone", CLONED, STAGE.but(id="twin"), may_remain=UUID_REGENERATED),
    Case("stage-clone-readonly", CLONED, STAGE.but(id="twin", readonly=True)),
    Case("unstage", STAGED, Unstage(id="data")),
    Case("unstage-force", MOUNTED, Unstage(id="data", force=True)),
    Case("mount", STAGED, MOUNT),
    Case("mount-second", MOUNTED, MOUNT.but(path="/srv/readonly", readonly=True)),
    Case("mount-again", MOUNTED, MOUNT, lost=("mount:/srv",)),
    Case("mount-block", BLOCK, MOUNT),
    Case("unmount", MOUNTED, UnmountFrom(id="data", path="/srv/data")),
    Case("unmount-all", (*MOUNTED, MOUNT.but(path="/srv/second")), UnmountFrom(id="data")),
    Case("unmount-block", (*BLOCK, MOUNT), UnmountFrom(id="data")),
    Case("unmount-force", MOUNTED, UnmountFrom(id="data", force=True)),
    Case("grow", (*MOUNTED, LARGER), Grow(id="data"), may_remain=CLIENT_SIZE),
)
BOTH = (
    Case(
        "sync",
        MOUNTED,
        SYNC,
        lost=("acl:", "mapped:", "mount:", "session:"),
        may_remain=OPENED,
    ),
    Case(
        "sync-limited",
        FAST_CONNECTED,
        SYNC,
        lost=("limit:",),
        may_remain=(*OPENED, *UNLIMITED),
    ),
    Case(
        "sync-all",
        TWO_PUBLISHED,
        SYNC,
        lost=("backstore:", "lun:", "acl:", "mapped:"),
        batch=True,
    ),
    Case(
        "remove-orphans",
        MOUNTED,
        orphans.RemoveOrphans(names=()),
        damage=lose_records,
        find=remove_all,
    ),
    Case(
        "remove-limited-orphans",
        (HOST, FAST, PUBLISH),
        orphans.RemoveOrphans(names=()),
        damage=lose_records,
        find=remove_all,
    ),
    Case("create-host", (), HOST),
    Case("update-host", (HOST,), UpdateHost(id="take", mask=("iqn",), iqn=OTHER)),
    Case("update-host-machine", (*PUBLISHED, MORE, PUBLISH.but(volume="more")), NEW_MACHINE),
    Case("delete-host", (HOST,), DeleteHost(id="take")),
)
WRITE = PUBLISH.but(access_mode="MULTI_NODE_MULTI_WRITER")
BOTH_WRITE = (
    HOST,
    SECOND,
    CREATE.but(mode="BLOCK", access_modes=("MULTI_NODE_MULTI_WRITER",)),
    WRITE,
    WRITE.but(host="other"),
)
SHARED_NVME = (
    Case("open-ports", TWO_PUBLISHED, OpenPorts(ids=("data", "more")), OPENED, lost=("portals:",)),
    Case("publish-second", BOTH_WRITE[:-1], BOTH_WRITE[-1]),
    Case("publish-second-after-boot", BOTH_WRITE[:-1], BOTH_WRITE[-1], damage=reboot),
    Case("publish-beside", (*BOTH_WRITE[:-1], CONNECT), BOTH_WRITE[-1]),
    Case("unpublish-one", BOTH_WRITE, UNPUBLISH.but(host="take")),
    Case("unpublish-all", BOTH_WRITE, UNPUBLISH),
    Case("rotate-secrets", BOTH_WRITE, RotateSecrets(volume="data")),
    Case("fence-one", (*BOTH_WRITE, CONNECT), UNPUBLISH.but(host="take", fence=True, grace_s=0)),
)
PATHS = (  # the only session over iSCSI stays where it is
    Case(
        "follow-server-live",
        MOUNTED,
        FollowServer(id="data"),
        damage=add_portal,
        may_remain=(r"fact session:.* (beside|portal)",),
    ),
)
OVER_NVME = (
    "publish",
    "publish-again",
    "publish-repair",
    "publish-force",
    "publish-over-session",
    "unpublish",
    "unpublish-half",
    "unpublish-rotated",
    "delete-published",
    "fence",
    "rotate-secrets-forced",
    "rotate-secrets-due",
    "put-back",
    "put-back-copy",
    "remove-export",
    "adopt-published",
    "update-host-machine",
    "connect",
    "connect-publish",
    "connect-repair",
    "connect-rotated",
    "disconnect",
    "disconnect-force",
    "end-session",
    "end-wait",
    "follow-server",
    "refresh-secrets",
    "refresh-secrets-lost",
    "clear",
    "attach",
    "attach-lost",
    "detach",
    "detach-force",
    "grow",
    "sync",
    "sync-all",
    "remove-orphans",
)
"""The cases whose steps are others over NVMe."""
NVME_FACTS = {"mapped:": "portals:", "enabled:": "portals:", "backstore:": "namespace:"}
"""What a case loses, by the name that it has over iSCSI."""


def over_nvme(case: Case) -> Case:
    """Return a case with its volumes published over NVMe."""

    def created(request: Request[Any]) -> Request[Any]:
        is_new = isinstance(request, CreateVolume)
        return request.but(transport="NVME") if is_new else request

    return case._replace(
        name=f"nvme-{case.name}",
        before=tuple(map(created, case.before)),
        request=created(case.request),
        lost=tuple(dict.fromkeys(NVME_FACTS.get(fact, fact) for fact in case.lost)),
    )


def with_tls(case: Case) -> Case:
    """Return a case with its volumes published over NVMe with TLS."""

    def created(request: Request[Any]) -> Request[Any]:
        is_new = isinstance(request, CreateVolume)
        return request.but(tls=True) if is_new else request

    nvme = over_nvme(case)
    return nvme._replace(
        name=f"tls-{case.name}",
        before=tuple(map(created, nvme.before)),
        request=created(nvme.request),
        lost=(*nvme.lost, "psk:") if "acl:" in nvme.lost else nvme.lost,
    )


WITH_TLS = (
    "publish",
    "open-ports",
    "publish-repair",
    "unpublish",
    "fence",
    "rotate-secrets-forced",
    "rotate-secrets-due",
    "connect",
    "connect-publish",
    "connect-repair",
    "disconnect",
    "disconnect-force",
    "follow-server",
    "refresh-secrets",
    "clear",
    "sync-all",
)
"""The cases whose effects are others with TLS."""
ISCSI = (*SERVER, *CLIENT, *BOTH)
NVME = tuple(
    map(over_nvme, (*(case for case in ISCSI if case.name in OVER_NVME), *SHARED_NVME, *PATHS))
)
OVER_A_MAP = (
    "connect",
    "connect-publish",
    "connect-repair",
    "connect-rotated",
    "disconnect",
    "disconnect-force",
    "end-session",
    "end-wait",
    "refresh-secrets",
    "clear",
    "attach",
    "attach-lost",
    "detach",
    "detach-force",
    "grow",
    "sync",
)
"""The cases whose steps are others with a map of dm-multipath."""


def over_a_map(case: Case) -> Case:
    """Return a case with several sessions for a disk, joined by a map.

    A path that was ended before the failure comes back at the next pass.
    """
    may_remain = (*case.may_remain, r"fact session:.* beside")
    return case._replace(name=f"map-{case.name}", several=True, may_remain=may_remain)


MAPS = tuple(map(over_a_map, (*(case for case in ISCSI if case.name in OVER_A_MAP), *PATHS)))
TLS = tuple(with_tls(case) for case in (*ISCSI, *SHARED_NVME) if case.name in WITH_TLS)
CASES = (*ISCSI, *MAPS, *NVME, *TLS)


def requests() -> Iterator[type[Request[Any]]]:
    """Yield every request class, of any module of zfsilod/requests."""
    for module in pkgutil.iter_modules(zfsilod.requests.__path__, "zfsilod.requests."):
        if not module.ispkg:
            importlib.import_module(module.name)
    ahead = list(Request.__subclasses__())
    while ahead:
        kind = ahead.pop()
        ahead += kind.__subclasses__()
        if kind.kind:
            yield kind

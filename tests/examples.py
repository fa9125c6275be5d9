"""Example records, and an example of every plan with the steps that must be done before it.

The contract test and the crash tests run every plan of `PLANS`, so a new step or plan is tested by
adding an example here.
"""

from __future__ import annotations

from zfsilod.engine import plans
from zfsilod.engine.step import HostStep
from zfsilod.engine.steps.access import NoAcl, NoUnknownAcls
from zfsilod.engine.steps.export import AllPortals, NoExport, Portals
from zfsilod.engine.steps.filesystem import Formatted
from zfsilod.engine.steps.limits import SessionsLimited
from zfsilod.engine.steps.ownership import PoolOwned
from zfsilod.engine.steps.session import NoNode
from zfsilod.engine.steps.users import ZvolUnused
from zfsilod.engine.steps.zvol_name import ZvolRenamed
from zfsilod.model.chap import Chap
from zfsilod.model.host_facts import NO_LIMITS, Disk, Filesystem, IoLimits, SnapshotRef
from zfsilod.model.names import host_nqn
from zfsilod.model.record import Record
from zfsilod.model.records import (
    Action,
    Attachment,
    Mount,
    Operation,
    Publication,
    ReplicaOf,
    Step,
    Volume,
)
from zfsilod.model.replica import KeptSnapshot
from zfsilod.model.settings import Export

UID = "0123456789abcdef0123456789abcdef"
TAKE = "iqn.2024-01.lab.take:host"
HOW = Export(
    prefix="iqn.2026-01.org.zfsilo:give",
    portals=("10.77.0.1:3260",),
    nvme_portals=("10.77.0.1:4420",),
    nvme_cntlid_min=32000,
)
GIB = 1 << 30

VOLUME = Volume(
    id="data",
    uid=UID,
    dataset="tank/data",
    capacity_bytes=GIB,
    thin=True,
    mode="FILESYSTEM",
    volblocksize=16384,
    properties=(("compression", "lz4"),),
)
RENAMED = VOLUME.but(target=f"iqn.2026-01.org.zfsilo:nas:{UID}")
SECRET = VOLUME.but(key_uid=UID)
LIMITS = IoLimits(read_iops=500, write_bytes=20 << 20)
LIMITED = VOLUME.but(state="PUBLISHED", limits=LIMITS)
OTHER = VOLUME.but(id="other", uid="a" * 32, dataset="tank/other")
COPY = VOLUME.but(id="copy", uid="b" * 32, dataset="tank/copy", capacity_bytes=2 * GIB, thin=False)
SNAPSHOT_REFS = tuple(
    SnapshotRef(dataset=volume.dataset, uid=volume.uid) for volume in (VOLUME, OTHER)
)
SNAPSHOT_SET = plans.snapshot_set("c" * 32, SNAPSHOT_REFS[:1])
GROUP = plans.snapshot_set("e" * 32, SNAPSHOT_REFS)
REPLICA = VOLUME.but(
    id="replica",
    uid="d" * 32,
    dataset="tank/replica",
    replica=ReplicaOf(peer="give", snapshot_uid="c" * 32),
)
ORIGIN = plans.Origin(
    snapshot_ref=SNAPSHOT_REFS[0], snapshot_uid="c" * 32, own=False, size_bytes=GIB
)
TRASH = f"tank/.trash/{UID}"
ASIDE = VOLUME.but(dataset="tank/aside")  # as somebody has renamed its zvol
PUBLICATION = Publication(id="data/take", volume="data", host="take", initiator=TAKE, epoch=1)
SECOND = Publication(
    id="data/other", volume="data", host="other", initiator="iqn.2024-01.lab.other:host", epoch=2
)
TARGET = plans.target_name(HOW.prefix, VOLUME)
ATTACHMENT = Attachment(
    id="data",
    server="give",
    volume="data",
    disk=Disk(target=TARGET, serial=UID, size_bytes=GIB),
    portals=("10.77.0.1:3260",),
    mode="FILESYSTEM",
    epoch=1,
    state="MOUNTED",
    staging_path="/staging/data",
    made_staging_path=True,
    mounts=(Mount(path="/srv/data", made_path=True),),
    filesystem=Filesystem(
        state="FORMATTING",
        type="ext4",
        uuid="6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11",
        operation="01jd",
        host="take",
    ),
)
CLONED = ATTACHMENT.but(
    filesystem=Filesystem(
        state="CLONED",
        type="ext4",
        uuid="7c2bd2e1-4d7f-4e1d-8f1f-1f6e8f409b22",
        origin=ATTACHMENT.filesystem.uuid,
    )
)
NVME_TARGET = f"nqn.2026-01.org.zfsilo:give:{UID}"
NVME_VOLUME = VOLUME.but(target=NVME_TARGET)
NVME_PUBLICATION, NVME_SECOND = (
    publication.but(
        id=f"nvme/{publication.host}",
        transport="NVME",
        initiator=host_nqn(publication.host, UID),
    )
    for publication in (PUBLICATION, SECOND)
)
NVME_ATTACHMENT = ATTACHMENT.but(
    id="nvme", disk=ATTACHMENT.disk.but(target=NVME_TARGET), portals=("10.77.0.1:4420",)
)
TLS_PUBLICATION, TLS_SECOND = (
    publication.but(id=f"tls/{publication.host}", tls=True)
    for publication in (NVME_PUBLICATION, NVME_SECOND)
)
TLS_ATTACHMENT = NVME_ATTACHMENT.but(id="tls", portals=("10.77.0.1:4421",), tls=True)
TLS_KEYS = (  # configured PSKs of 32 equal bytes, of the first and of the second rotation
    "NVMeTLSkey-1:01:ERERERERERERERERERERERERERERERERERERERERERHYIEm8:",
    "NVMeTLSkey-1:01:IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIGuf2I:",
)
BLOCK = ATTACHMENT.but(mode="BLOCK", mounts=(Mount(path="/dev-data", made_path=True),))


def chap(name: str) -> Chap:
    """Return made-up secrets, the same for the same name."""
    owner, _hash, rotation = name.partition("#")
    if owner.startswith("tls"):
        return Chap(
            username=host_nqn(owner.partition("/")[2] or "take", UID),
            password=f"secret-in-{rotation}",
            mutual_username=NVME_TARGET,
            mutual_password=f"secret-out-{rotation}",
            tls_key=TLS_KEYS[bool(rotation)],
        )
    return Chap(
        username=TAKE,
        password=f"secret-in-{name}",
        mutual_username=TARGET,
        mutual_password=f"secret-out-{name}",
    )


class Example(Record):
    """A plan: the steps that must be done before it, and its actions."""

    name: str
    before: tuple[Step, ...]
    actions: tuple[Action, ...]


def _server() -> tuple[Example, ...]:
    created = (plans.zvol(VOLUME),)
    exported = (*created, *plans.export_steps(VOLUME, HOW))
    published = (*exported, *plans.grant(VOLUME, PUBLICATION, HOW, []))
    twice = (*published, *plans.grant(VOLUME, SECOND, HOW, [PUBLICATION]))
    limited = _steps(plans.publish(LIMITED, PUBLICATION, HOW, []))
    named = plans.named(LIMITED, HOW.prefix)
    return (
        Example(name="create", before=(), actions=plans.up(created)),
        Example(name="delete", before=created, actions=plans.down(created)),
        Example(
            name="create-encrypted",
            before=(),
            actions=plans.up([plans.zvol(SECRET)]),
        ),
        Example(
            name="load-key",
            before=(plans.zvol(SECRET),),
            actions=plans.up(plans.key_loaded(SECRET)),
        ),
        Example(
            name="rotate-key",
            before=(plans.zvol(SECRET),),
            actions=plans.key_change(SECRET, 1),
        ),
        Example(name="snapshot", before=created, actions=plans.up([SNAPSHOT_SET])),
        Example(
            name="delete-snapshot",
            before=(*created, SNAPSHOT_SET),
            actions=(
                *plans.up([plans.snapshots_unused(SNAPSHOT_SET.uid, SNAPSHOT_SET.refs)]),
                *plans.down([SNAPSHOT_SET]),
            ),
        ),
        Example(
            name="snapshot-group", before=(*created, plans.zvol(OTHER)), actions=plans.up([GROUP])
        ),
        Example(
            name="create-from-snapshot",
            before=(*created, SNAPSHOT_SET),
            actions=plans.clone(COPY, ORIGIN, "01jd"),
        ),
        Example(
            name="create-from-volume",
            before=created,
            actions=plans.clone(COPY, ORIGIN.but(own=True, snapshot_uid="d" * 32), "01jd"),
        ),
        Example(
            name="delete-into-trash",
            before=created,
            actions=plans.up(
                [
                    ZvolUnused(dataset=VOLUME.dataset),
                    plans.in_trash(VOLUME, VOLUME.dataset, TRASH),
                ]
            ),
        ),
        Example(
            name="undelete",
            before=(*created, plans.in_trash(VOLUME, VOLUME.dataset, TRASH)),
            actions=plans.down([plans.in_trash(VOLUME, VOLUME.dataset, TRASH)]),
        ),
        Example(
            name="put-back",
            before=(plans.zvol(ASIDE),),
            actions=plans.up(
                [ZvolRenamed(dataset=VOLUME.dataset, other=ASIDE.dataset, uid=UID, guid="")]
            ),
        ),
        Example(name="resize", before=published, actions=plans.resize(VOLUME, 2 * GIB)),
        Example(
            name="properties",
            before=created,
            actions=plans.properties(VOLUME, {"compression": "zstd", "sync": "always"}),
        ),
        Example(
            name="count-epoch",
            before=created,
            actions=plans.up([plans.epoch(VOLUME, 8, "01jd")]),
        ),
        Example(name="not-newer", before=created, actions=plans.up([plans.not_newer(VOLUME)])),
        Example(
            name="publish", before=created, actions=plans.publish(VOLUME, PUBLICATION, HOW, [])
        ),
        Example(
            name="limit",
            before=published,
            actions=plans.limits(named.but(limits=NO_LIMITS), LIMITS),
        ),
        Example(
            name="limit-again",
            before=(*created, *limited),
            actions=plans.limits(named, LIMITS.but(read_iops=600)),
        ),
        Example(
            name="remove-limits",
            before=(*created, *limited),
            actions=plans.limits(named, NO_LIMITS),
        ),
        Example(
            name="limit-sessions",
            before=(*created, *limited),
            actions=plans.up([SessionsLimited()]),
        ),
        Example(
            name="publish-second",
            before=(*exported, *plans.grant(VOLUME, PUBLICATION, HOW, [SECOND])),
            actions=plans.publish(VOLUME, SECOND, HOW, [PUBLICATION]),
        ),
        Example(
            name="unpublish",
            before=published,
            actions=plans.unpublish(VOLUME, PUBLICATION, HOW, []),
        ),
        Example(
            name="unpublish-one",
            before=twice,
            actions=plans.unpublish(VOLUME, PUBLICATION, HOW, [SECOND]),
        ),
        Example(
            name="rotate-secrets",
            before=published,
            actions=plans.up(
                [
                    *plans.no_sessions(VOLUME, [PUBLICATION], HOW),
                    plans.rotation(VOLUME, PUBLICATION, PUBLICATION.but(rotation=1), HOW),
                ]
            ),
        ),
        Example(
            name="remove-export",
            before=published,
            actions=plans.up([NoExport(target=TARGET, backstore=plans.backstore_name(VOLUME))]),
        ),
        Example(
            name="remove-target",
            before=(*published, *plans.export_steps(RENAMED, HOW)[1:3]),
            actions=plans.up([NoExport(target=RENAMED.target, backstore="")]),
        ),
        Example(
            name="not-exported", before=created, actions=plans.up([plans.not_exported(VOLUME)])
        ),
        Example(
            name="no-other-path",
            before=published,
            actions=plans.up([plans.no_other_path(VOLUME, [PUBLICATION], [TARGET])]),
        ),
        Example(
            name="remove-acl",
            before=twice,
            actions=plans.up([NoAcl(target=TARGET, initiator=SECOND.initiator)]),
        ),
        Example(
            name="take-down",
            before=exported,
            actions=(
                *plans.up([NoUnknownAcls(target=TARGET)]),
                *plans.down(plans.export_steps(VOLUME, HOW)),
            ),
        ),
        Example(
            name="fence",
            before=twice,
            actions=plans.unpublish(
                VOLUME, PUBLICATION, HOW, [SECOND], fence=plans.Fence(grace_s=0)
            ),
        ),
    )


def _client() -> tuple[Example, ...]:
    connected = tuple(plans.connection_steps(ATTACHMENT))
    down = tuple(plans.disconnecting(ATTACHMENT))
    staged = (*connected, *plans.staging_steps(ATTACHMENT))
    formatted = (*connected, Formatted(disk=ATTACHMENT.disk, filesystem=ATTACHMENT.filesystem))
    mounted = (*staged, *plans.mounting_steps(ATTACHMENT, ATTACHMENT.mounts[0]))
    block = (*connected, *plans.mounting_steps(BLOCK, BLOCK.mounts[0]))
    return (
        Example(name="connect", before=(), actions=plans.up(connected)),
        Example(name="disconnect", before=connected, actions=plans.detach_path(ATTACHMENT, down)),
        Example(name="stage", before=connected, actions=plans.up(plans.staging_steps(ATTACHMENT))),
        Example(
            name="stage-clone", before=formatted, actions=plans.up(plans.staging_steps(CLONED))
        ),
        Example(
            name="stage-clone-readonly",
            before=formatted,
            actions=plans.up(plans.staging_steps(CLONED.but(stage_readonly=True))),
        ),
        Example(name="unstage", before=staged, actions=plans.unstaging(ATTACHMENT)),
        Example(
            name="mount",
            before=staged,
            actions=plans.up(plans.mounting_steps(ATTACHMENT, ATTACHMENT.mounts[0])),
        ),
        Example(
            name="unmount",
            before=mounted,
            actions=plans.unmounting(ATTACHMENT, ATTACHMENT.mounts[0]),
        ),
        Example(
            name="grow",
            before=staged,
            actions=plans.growth(ATTACHMENT.but(state="STAGED"), 2 * GIB),
        ),
        Example(
            name="mount-block",
            before=connected,
            actions=plans.up(plans.mounting_steps(BLOCK, BLOCK.mounts[0])),
        ),
        Example(
            name="unmount-block", before=block, actions=plans.unmounting(BLOCK, BLOCK.mounts[0])
        ),
        Example(
            name="refresh-secrets",
            before=connected,
            actions=plans.new_secrets([(ATTACHMENT, ATTACHMENT.but(rotation=1))]),
        ),
        Example(
            name="remove-node", before=connected[:1], actions=plans.up([NoNode(target=TARGET)])
        ),
        Example(name="attach", before=(), actions=plans.up(mounted)),
        Example(name="sync", before=mounted, actions=plans.client_facts(ATTACHMENT)),
        Example(
            name="disconnect-by-force",
            before=mounted,
            actions=(*plans.forced_detach_path(ATTACHMENT), *plans.down(down)),
        ),
        Example(
            name="disconnect-block-by-force",
            before=block,
            actions=(*plans.forced_detach_path(BLOCK), *plans.down(down)),
        ),
        Example(
            name="unmount-by-force",
            before=mounted,
            actions=plans.forced_unmount(ATTACHMENT, ATTACHMENT.mounts),
        ),
    )


def _all_portals(*, tls: bool) -> AllPortals:
    return AllPortals(targets=(NVME_TARGET,), portals=HOW.portals_of("NVME", tls=tls), tls=tls)


def _nvme_server(publication: Publication, second: Publication) -> tuple[Example, ...]:
    volume = NVME_VOLUME
    created = (plans.zvol(volume),)
    published = (*created, *_steps(plans.publish(volume, publication, HOW, [])))
    twice = (*published, *plans.grant(volume, second, HOW, [publication]))
    granted = plans.grant(volume, second, HOW, [publication])
    beside = (*created, *_steps(plans.publish(volume, publication, HOW, [second])))
    beside = tuple(step for step in beside if step not in granted)
    return (
        Example(
            name="nvme-publish",
            before=created,
            actions=plans.publish(volume, publication, HOW, []),
        ),
        Example(
            name="nvme-publish-second",
            before=beside,
            actions=plans.publish(volume, second, HOW, [publication]),
        ),
        Example(
            name="nvme-open-ports",
            before=tuple(step for step in published if not isinstance(step, Portals)),
            actions=plans.up([_all_portals(tls=publication.tls)]),
        ),
        Example(
            name="nvme-unpublish",
            before=published,
            actions=plans.unpublish(volume, publication, HOW, []),
        ),
        Example(
            name="nvme-unpublish-one",
            before=twice,
            actions=plans.unpublish(volume, publication, HOW, [second]),
        ),
        Example(
            name="nvme-fence",
            before=twice,
            actions=plans.unpublish(
                volume, publication, HOW, [second], fence=plans.Fence(grace_s=0)
            ),
        ),
        Example(
            name="nvme-rotate-secrets",
            before=published,
            actions=plans.up(
                [
                    *plans.no_sessions(volume, [publication], HOW),
                    plans.rotation(volume, publication, publication.but(rotation=1), HOW),
                ]
            ),
        ),
        Example(
            name="nvme-remove-export",
            before=twice,
            actions=plans.up([NoExport(target=NVME_TARGET, backstore="")]),
        ),
        Example(
            name="nvme-remove-acl",
            before=twice,
            actions=plans.up([NoAcl(target=NVME_TARGET, initiator=second.initiator)]),
        ),
        Example(
            name="nvme-no-other-path",
            before=published,
            actions=plans.up([plans.no_other_path(volume, [publication], [NVME_TARGET])]),
        ),
    )


def _nvme_client(attachment: Attachment) -> tuple[Example, ...]:
    connected = tuple(plans.connection_steps(attachment))
    down = tuple(plans.disconnecting(attachment))
    staged = (*connected, *plans.staging_steps(attachment))
    mounted = (*staged, *plans.mounting_steps(attachment, attachment.mounts[0]))
    return (
        Example(name="nvme-connect", before=(), actions=plans.up(connected)),
        Example(
            name="nvme-disconnect",
            before=connected,
            actions=plans.detach_path(attachment, down),
        ),
        Example(name="nvme-attach", before=(), actions=plans.up(mounted)),
        Example(
            name="nvme-unstage",
            before=staged,
            actions=plans.unstaging(attachment),
        ),
        Example(
            name="nvme-grow",
            before=staged,
            actions=plans.growth(attachment.but(state="STAGED"), 2 * GIB),
        ),
        Example(
            name="nvme-refresh-secrets",
            before=connected,
            actions=plans.new_secrets([(attachment, attachment.but(rotation=1))]),
        ),
        Example(name="nvme-sync", before=mounted, actions=plans.client_facts(attachment)),
        Example(
            name="nvme-disconnect-by-force",
            before=mounted,
            actions=(*plans.forced_detach_path(attachment), *plans.down(down)),
        ),
    )


def _steps(actions: tuple[Action, ...]) -> tuple[Step, ...]:
    return tuple(action.step for action in actions)


def _replication() -> tuple[Example, ...]:
    snapshot = (plans.zvol(VOLUME), SNAPSHOT_SET)
    taken = KeptSnapshot(uid=SNAPSHOT_SET.uid, guid="", created_txg=0)
    kept = plans.kept_for_peer(VOLUME, taken, "other")
    received = plans.received(REPLICA, "", "01jd00000000000000000000aa")
    gone = plans.received_gone(REPLICA, [SNAPSHOT_SET.uid])
    return (
        Example(name="keep-for-peer", before=snapshot, actions=plans.up([kept])),
        Example(name="release-for-peer", before=(*snapshot, kept), actions=plans.down([kept])),
        Example(name="receive", before=snapshot, actions=plans.up([received])),
        Example(
            name="delete-replica",
            before=(*snapshot, received),
            actions=gone,
        ),
    )


def _pool() -> tuple[Example, ...]:
    owner = f"{'5' * 32}:{{}}:give"
    first, next_one = (PoolOwned(root="tank", owner=owner.format(n)) for n in (1, 2))
    return (
        Example(name="claim-pool", before=(), actions=plans.up([first])),
        Example(name="claim-again", before=(first,), actions=plans.up([next_one])),
    )


def _tls() -> tuple[Example, ...]:
    """Return the examples whose effects are others with TLS."""
    examples = (*_nvme_server(TLS_PUBLICATION, TLS_SECOND), *_nvme_client(TLS_ATTACHMENT))
    named = [one.but(name=one.name.replace("nvme-", "tls-", 1)) for one in examples]
    return tuple(example for example in named if example.name in OVER_TLS)


OVER_TLS = (
    "tls-publish",
    "tls-open-ports",
    "tls-unpublish",
    "tls-unpublish-one",
    "tls-fence",
    "tls-rotate-secrets",
    "tls-remove-export",
    "tls-connect",
    "tls-disconnect",
    "tls-refresh-secrets",
    "tls-sync",
)
PLANS = (
    *_server(),
    *_nvme_server(NVME_PUBLICATION, NVME_SECOND),
    *_replication(),
    *_pool(),
    *_client(),
    *_nvme_client(NVME_ATTACHMENT),
    *_tls(),
)


def steps() -> list[HostStep]:
    """Return every different step of the examples, every class at least once."""
    different: dict[str, HostStep] = {}
    for example in PLANS:
        for action in example.actions:
            if isinstance(action.step, HostStep):
                different.setdefault(repr(action.step), action.step)
    return list(different.values())


def operation(example: Example, boot_id: str = "first") -> Operation:
    """Return an operation that carries an example out."""
    return Operation(
        id="01jd00000000000000000000aa",
        kind=example.name,
        subject="volumes/data",
        title=example.name,
        actions=example.actions,
        claims=("volume/data",),
        commit=(),
        boot_id=boot_id,
    )

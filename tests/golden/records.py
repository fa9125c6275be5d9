"""One record of every stored class with all fields filled, for the golden store `records`."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from tests.examples import ATTACHMENT, UID, VOLUME, steps
from zfsilod.engine.steps.filesystem import Reported
from zfsilod.engine.steps.replica import Sent
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.ownership import IDENTITY, PoolClaim, StoreIdentity
from zfsilod.model.policies import (
    PolicyOutcome,
    ReplicationOutcome,
    ReplicationPolicy,
    SnapshotPolicy,
)
from zfsilod.model.records import (
    Action,
    Change,
    Condition,
    Dependent,
    Failure,
    Host,
    Issued,
    Mount,
    Operation,
    PendingRelease,
    Publication,
    ReplicaOf,
    Revocation,
    Snapshot,
    SnapshotGroup,
    Standing,
    Token,
    Trashed,
    VolumeKey,
)
from zfsilod.model.replica import Replication
from zfsilod.model.words import ActionStatus

if TYPE_CHECKING:
    from zfsilod.model.record import Stored

TODAY = 1_800_000_000
STATUSES: tuple[ActionStatus, ...] = get_args(ActionStatus)
LABELS = (("app", "db"), ("tier", "gold"))
OTHER = "iqn.2024-01.lab.other:host"
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
FILESYSTEM = Filesystem(
    state="CLONED",
    type="xfs",
    uuid=UUID,
    operation="01kd00000000000000000000aa",
    host="take",
    origin="7c2bd2e1-4d7f-4e1d-8f1f-1f6e8f409b22",
)
FULL_VOLUME = VOLUME.but(
    labels=LABELS,
    hosts=("take", "other"),
    state="PUBLISHED",
    guid="1234567890",
    access_modes=("SINGLE_NODE_WRITER", "MULTI_NODE_READER_ONLY"),
    filesystem=FILESYSTEM,
    epoch=3,
    source_snapshot="monday",
    source_volume="origin",
    origin="f" * 32,
    created_at=TODAY,
    updated_at=TODAY + 1,
)
FULL_ATTACHMENT = ATTACHMENT.but(
    id="here",
    rotation=2,
    readonly=True,
    restore="BOOT",
    published_here="01kd00000000000000000000ab",
    filesystem=FILESYSTEM,
    mount_options=("noatime",),
    stage_readonly=True,
    mounts=(Mount(path="/srv/data", readonly=True, made_path=True),),
    boot_id="first",
    created_at=TODAY,
    updated_at=TODAY + 1,
)
ALL_STEPS = (
    *steps(),
    Reported(server="give", volume="data", epoch=1, state="READY", type="ext4", uuid=UUID),
    Sent(
        server="other",
        volume="data",
        snapshot="replica-data-other-1",
        base_uid="c" * 32,
        base_guid="987654321",
        raw=True,
        rate=1 << 20,
    ),
)
ACTIONS = tuple(
    Action(step=step, up=bool(index % 2), status=STATUSES[index % len(STATUSES)], took_ms=index)
    for index, step in enumerate(ALL_STEPS)
)
RECORDS: tuple[Stored, ...] = (
    FULL_VOLUME,
    VOLUME.but(id="block", uid="e" * 32, mode="BLOCK", properties=(), thin=False),
    FULL_ATTACHMENT,
    Trashed(
        id=f"old/{UID}",
        volume=FULL_VOLUME.but(id="old", dataset=f"tank/.trash/{UID}"),
        home="tank/old",
        deleted_at=TODAY,
        purge_at=TODAY + 60,
    ),
    Snapshot(
        id="monday",
        uid="c" * 32,
        volume="data",
        volume_uid=UID,
        size_bytes=1 << 30,
        volblocksize=16384,
        mode="FILESYSTEM",
        filesystem=FILESYSTEM,
        labels=LABELS,
        group="both",
        guid="987654321",
        policy="nightly",
        created_at=TODAY,
    ),
    SnapshotGroup(
        id="both",
        uid="c" * 32,
        volumes=("data",),
        snapshots=("monday",),
        labels=LABELS,
        policy="nightly",
        created_at=TODAY,
    ),
    SnapshotPolicy(
        id="nightly",
        calendar="daily",
        grid="24x1h 7x1d",
        selector=LABELS,
        grouped=True,
        max_delay_seconds=60,
        created_at=TODAY,
        updated_at=TODAY,
    ),
    VolumeKey(id=UID, rotation=1, exported_at=TODAY, created_at=TODAY),
    PolicyOutcome(
        id="nightly",
        ran_at=TODAY,
        succeeded_at=TODAY,
        failures=("data: the pool is full",),
        prune_failures=("nightly-20260101t000000z-data: the pool is full",),
    ),
    Dependent(id=f"{UID}/snapshots/monday", name="snapshots/monday"),
    Publication(
        id="data/other",
        volume="data",
        host="other",
        initiator=OTHER,
        transport="ISCSI",
        access_mode="MULTI_NODE_READER_ONLY",
        readonly=True,
        epoch=3,
        published_by="host other",
        client_operation="01kd00000000000000000000ac",
        rotation=1,
        rotation_due=True,
        created_at=TODAY,
    ),
    Host(
        id="other",
        iqn=OTHER,
        nqn="nqn.2014-08.org.nvmexpress:uuid:" + UUID,
        addresses=("10.77.0.2",),
        labels=LABELS,
        max_attachments=8,
        created_at=TODAY,
        updated_at=TODAY + 1,
    ),
    VOLUME.but(
        id="replica",
        uid="9" * 32,
        dataset="tank/replica",
        state="CREATED",
        replica=ReplicaOf(
            peer="give",
            snapshot_uid="c" * 32,
            snapshot_guid="987654321",
            taken_at=TODAY,
            received_at=TODAY + 1,
            raw=True,
        ),
        term=TODAY,
        term_store="5" * 32,
        peers=("give", "imported/third"),
        aside_of="data",
    ),
    Standing(id=UID, boot_id="first", reason="PEER_SILENT", peer="other"),
    ReplicationPolicy(
        id="hourly",
        uid="d" * 32,
        peer="other",
        calendar="hourly",
        selector=LABELS,
        volumes=("data",),
        bytes_per_second=1 << 20,
        max_delay_seconds=60,
        created_at=TODAY,
        updated_at=TODAY,
    ),
    ReplicationOutcome(
        id="hourly",
        ran_at=TODAY,
        succeeded_at=TODAY,
        failures=("data: the peer is full",),
        missed=True,
    ),
    Replication(
        id=f"{UID}/other",
        volume="data",
        peer="other",
        number=2,
        snapshot="replica-data-other-2",
        snapshot_uid="c" * 32,
        snapshot_guid="987654321",
        taken_at=TODAY,
        sent_at=TODAY + 1,
        due_at=TODAY + 7200,
        due_of="zfsilo: replication of policy hourly (hourly, up to 60 s later)",
        pending_uid="8" * 32,
        created_at=TODAY,
    ),
    PendingRelease(id="01kd00000000000000000000ad", server="give", volume="data"),
    StoreIdentity(id=IDENTITY, store_id="5" * 32, machine="6" * 32, root="tank/zfsilo"),
    PoolClaim(id="tank/zfsilo", generation=7),
    Condition(id=UID, sentences=("the pool is degraded",)),
    Token(
        id="backup",
        digest="a" * 64,
        role="reader",
        subject="backup",
        created_at=TODAY,
        expires_at=TODAY + 60,
    ),
    Issued(
        id="b" * 64,
        subject="host/take",
        role="host",
        created_at=TODAY,
        expires_at=TODAY + 60,
        revoked_at=TODAY + 30,
    ),
    Revocation(id="host/take", revoked_at=TODAY + 30),
    Operation(
        id="01kd00000000000000000000ae",
        kind="publish",
        subject="volumes/data",
        title="publish data to other",
        actions=ACTIONS,
        claims=("volume/data",),
        commit=(
            Change(bucket="volume", key="data", record=FULL_VOLUME),
            Change(bucket="attachment", key="here", record=FULL_ATTACHMENT),
            Change(bucket="secret", key="data/other#1"),
        ),
        revert=(Change(bucket="secret", key="data/other#2"),),
        facts=(("guid", "1234567890"), (f"snapshot guid {UID}", "1")),
        fingerprint="d" * 64,
        caller="uid 0 (unix)",
        state="ABANDONED",
        attempts=2,
        boot_id="first",
        batch="01kd00000000000000000000af",
        created_at=TODAY,
        ended_at=TODAY + 1,
        failure=Failure(
            name="Conflict",
            message="the target is of another",
            reason="ALIEN",
            facts=(("target", "iqn"),),
            step="do Target",
        ),
    ),
)

"""One example of every record and step, and of every plan with what must stand before it.

The contract test runs each step of `STEPS`, the crash tests each plan of `PLANS`; a new step or
verb is tested by adding a line here.
"""

from __future__ import annotations

from zfsilod import plan
from zfsilod.model.chap import Chap
from zfsilod.model.record import Record
from zfsilod.model.records import (
    Attachment,
    Disk,
    Filesystem,
    HostStep,
    Mount,
    Move,
    Operation,
    Publication,
    Shot,
    Step,
    Volume,
)
from zfsilod.steps import Formatted, NoAcl, NobodyAdmitted, NoExport, NoNode

UID = "0123456789abcdef0123456789abcdef"
TAKE = "iqn.2024-01.lab.take:host"
HOW = plan.Export(prefix="iqn.2026-01.org.zfsilo:give", portals=("10.77.0.1:3260",))
GIB = 1 << 30

VOLUME = Volume(
    id="data", uid=UID, dataset="tank/data", capacity_bytes=GIB, thin=True, mode="FILESYSTEM",
    volblocksize=16384, properties=(("compression", "lz4"),),
)  # fmt: skip
OTHER = VOLUME.but(id="other", uid="a" * 32, dataset="tank/other")
COPY = VOLUME.but(id="copy", uid="b" * 32, dataset="tank/copy", capacity_bytes=2 * GIB, thin=False)
SHOTS = tuple(Shot(dataset=each.dataset, uid=each.uid) for each in (VOLUME, OTHER))
CUT = plan.cut("c" * 32, SHOTS[:1])
GROUP = plan.cut("e" * 32, SHOTS)
ORIGIN = plan.Origin(shot=SHOTS[0], cut="c" * 32, own=False, size_bytes=GIB)
TRASH = f"tank/.trash/{UID}"
PUBLICATION = Publication(id="data/take", volume="data", host="take", initiator=TAKE, epoch=1)
SECOND = Publication(
    id="data/other", volume="data", host="other", initiator="iqn.2024-01.lab.other:host", epoch=2
)
TARGET = plan.target_name(HOW.prefix, VOLUME)
ATTACHMENT = Attachment(
    id="data", server="give", volume="data",
    disk=Disk(target=TARGET, serial=UID, size_bytes=GIB), portals=("10.77.0.1:3260",),
    mode="FILESYSTEM", epoch=1, height="MOUNTED", staging_path="/staging/data",
    made_staging_path=True, mounts=(Mount(path="/srv/data", made_path=True),),
    filesystem=Filesystem(
        state="FORMATTING", type="ext4", uuid="6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11",
        operation="01jd", host="take",
    ),
)  # fmt: skip
CLONED = ATTACHMENT.but(
    filesystem=Filesystem(
        state="CLONED", type="ext4", uuid="7c2bd2e1-4d7f-4e1d-8f1f-1f6e8f409b22",
        origin=ATTACHMENT.filesystem.uuid,
    )
)  # fmt: skip
BLOCK = ATTACHMENT.but(mode="BLOCK", mounts=(Mount(path="/dev-data", made_path=True),))


def chap(name: str) -> Chap:
    """Return made-up secrets, the same for the same name."""
    return Chap(
        username=TAKE, password=f"secret-in-{name}",
        mutual_username=TARGET, mutual_password=f"secret-out-{name}",
    )  # fmt: skip


class Example(Record):
    """A plan: what must stand before it, and its moves."""

    name: str
    before: tuple[Step, ...]
    moves: tuple[Move, ...]


def _server() -> tuple[Example, ...]:
    created = (plan.zvol(VOLUME),)
    exported = (*created, *plan.export(VOLUME, HOW))
    published = (*exported, *plan.admission(VOLUME, PUBLICATION, HOW, []))
    twice = (*published, *plan.admission(VOLUME, SECOND, HOW, [PUBLICATION]))
    return (
        Example(name="create", before=(), moves=plan.up(created)),
        Example(name="delete", before=created, moves=plan.down(created)),
        Example(name="snapshot", before=created, moves=plan.up([CUT])),
        Example(name="delete-snapshot", before=(*created, CUT), moves=plan.down([CUT])),
        Example(name="snapshot-group", before=(*created, plan.zvol(OTHER)), moves=plan.up([GROUP])),
        Example(
            name="create-from-snapshot", before=(*created, CUT),
            moves=plan.clone(COPY, ORIGIN, "01jd"),
        ),
        Example(
            name="create-from-volume", before=created,
            moves=plan.clone(COPY, ORIGIN.but(own=True, cut="d" * 32), "01jd"),
        ),
        Example(
            name="delete-into-trash", before=created,
            moves=plan.up([plan.in_trash(VOLUME, VOLUME.dataset, TRASH)]),
        ),
        Example(
            name="undelete", before=(*created, plan.in_trash(VOLUME, VOLUME.dataset, TRASH)),
            moves=plan.down([plan.in_trash(VOLUME, VOLUME.dataset, TRASH)]),
        ),
        Example(name="resize", before=published, moves=plan.resize(VOLUME, 2 * GIB)),
        Example(
            name="properties", before=created,
            moves=plan.properties(VOLUME, {"compression": "zstd", "sync": "always"}),
        ),
        Example(name="publish", before=created, moves=plan.publish(VOLUME, PUBLICATION, HOW, [])),
        Example(
            name="publish-second", before=published,
            moves=plan.publish(VOLUME, SECOND, HOW, [PUBLICATION]),
        ),
        Example(
            name="unpublish", before=published,
            moves=plan.unpublish(VOLUME, PUBLICATION, HOW, []),
        ),
        Example(
            name="unpublish-one", before=twice,
            moves=plan.unpublish(VOLUME, PUBLICATION, HOW, [SECOND]),
        ),
        Example(
            name="rotate-secrets", before=published,
            moves=plan.rotation(VOLUME, PUBLICATION, PUBLICATION.but(rotation=1), HOW),
        ),
        Example(
            name="remove-export", before=published,
            moves=plan.up([NoExport(target=TARGET, backstore=plan.backstore_name(VOLUME))]),
        ),
        Example(
            name="remove-admission", before=twice,
            moves=plan.up([NoAcl(target=TARGET, initiator=SECOND.initiator)]),
        ),
        Example(
            name="take-down", before=exported,
            moves=(*plan.up([NobodyAdmitted(target=TARGET)]), *plan.down(plan.export(VOLUME, HOW))),
        ),
        Example(
            name="fence", before=twice,
            moves=plan.unpublish(VOLUME, PUBLICATION, HOW, [SECOND], fence=plan.Fence(grace_s=0)),
        ),
    )  # fmt: skip


def _consumer() -> tuple[Example, ...]:
    connected = tuple(plan.connection(ATTACHMENT))
    staged = (*connected, *plan.staging(ATTACHMENT))
    formatted = (*connected, Formatted(disk=ATTACHMENT.disk, filesystem=ATTACHMENT.filesystem))
    mounted = (*staged, *plan.mounting(ATTACHMENT, ATTACHMENT.mounts[0]))
    block = (*connected, *plan.mounting(BLOCK, BLOCK.mounts[0]))
    return (
        Example(name="connect", before=(), moves=plan.up(connected)),
        Example(name="disconnect", before=connected, moves=plan.descent(ATTACHMENT, connected)),
        Example(name="stage", before=connected, moves=plan.up(plan.staging(ATTACHMENT))),
        Example(name="stage-clone", before=formatted, moves=plan.up(plan.staging(CLONED))),
        Example(
            name="stage-clone-readonly", before=formatted,
            moves=plan.up(plan.staging(CLONED.but(stage_readonly=True))),
        ),
        Example(name="unstage", before=staged, moves=plan.unstaging(ATTACHMENT)),
        Example(
            name="mount", before=staged,
            moves=plan.up(plan.mounting(ATTACHMENT, ATTACHMENT.mounts[0])),
        ),
        Example(
            name="unmount", before=mounted,
            moves=plan.unmounting(ATTACHMENT, ATTACHMENT.mounts[0]),
        ),
        Example(
            name="grow", before=staged,
            moves=plan.growth(ATTACHMENT.but(height="STAGED"), 2 * GIB),
        ),
        Example(
            name="mount-block", before=connected,
            moves=plan.up(plan.mounting(BLOCK, BLOCK.mounts[0])),
        ),
        Example(name="unmount-block", before=block, moves=plan.unmounting(BLOCK, BLOCK.mounts[0])),
        Example(
            name="refresh-secrets", before=connected,
            moves=plan.new_secrets([(ATTACHMENT, ATTACHMENT.but(rotation=1))]),
        ),
        Example(
            name="remove-node", before=connected[:1], moves=plan.up([NoNode(target=TARGET)])
        ),
        Example(name="climb", before=(), moves=plan.up(mounted)),
        Example(
            name="disconnect-by-force", before=mounted,
            moves=(*plan.abandoning(ATTACHMENT), *plan.down(connected)),
        ),
        Example(
            name="disconnect-block-by-force", before=block,
            moves=(*plan.abandoning(BLOCK), *plan.down(connected)),
        ),
        Example(
            name="unmount-by-force", before=mounted,
            moves=plan.detaching(ATTACHMENT, ATTACHMENT.mounts),
        ),
    )  # fmt: skip


PLANS = (*_server(), *_consumer())


def steps() -> list[HostStep]:
    """Return every different step of the examples, each kind at least once."""
    found: dict[str, HostStep] = {}
    for example in PLANS:
        for move in example.moves:
            if isinstance(move.step, HostStep):
                found.setdefault(repr(move.step), move.step)
    return list(found.values())


def operation(example: Example, boot_id: str = "first") -> Operation:
    """Return an operation that carries an example out."""
    return Operation(
        id="01jd00000000000000000000aa", kind=example.name, subject="volumes/data",
        title=example.name, moves=example.moves, claims=("volume/data",), commit=(),
        boot_id=boot_id,
    )  # fmt: skip

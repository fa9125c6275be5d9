"""Plans by value: paths up and down are mirror images, and a final action comes last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import (
    ATTACHMENT,
    BLOCK,
    CLONED,
    COPY,
    HOW,
    NVME_PUBLICATION,
    NVME_SECOND,
    NVME_VOLUME,
    ORIGIN,
    PLANS,
    PUBLICATION,
    SECOND,
    TAKE,
    TARGET,
    UID,
    VOLUME,
    Example,
)
from zfsilod.engine import plans
from zfsilod.engine.step import Guard, HostStep
from zfsilod.engine.steps.access import (
    Acl,
    Fenced,
    MappedLun,
    NoReservations,
    NoSession,
    NoUnknownAcls,
)
from zfsilod.engine.steps.export import (
    ControllerIds,
    Enabled,
    Namespace,
    Portals,
    Reopened,
    Target,
)
from zfsilod.engine.steps.mount import LazyUnmounted, MountPoint
from zfsilod.engine.steps.session import DiskResponsive, SessionDropped
from zfsilod.engine.steps.snapshot import SnapshotSet
from zfsilod.engine.steps.users import UsersNamed
from zfsilod.engine.steps.zfs import NotNewer, Zvol, ZvolProperty, ZvolSize

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.record import Pairs
    from zfsilod.model.records import Action, Attachment, Publication, Step, Volume

MOUNT = ATTACHMENT.mounts[0]
DESTROYERS = (Zvol, SnapshotSet, ZvolSize)  # in their final direction
CHECKS = (
    Guard,
    Fenced,
    DiskResponsive,
    NoReservations,
    Reopened,
)  # they stand before other steps and change no state


def words(actions: tuple[Action, ...]) -> list[str]:
    """Return the descriptions of actions, with short names for the long ones."""
    return [
        action.description.replace(TARGET, "TARGET").replace(TAKE, "CLIENT").replace(UID, "UID")
        for action in actions
    ]


def undone(actions: tuple[Action, ...]) -> list[Step]:
    """Return the steps that actions undo, first to last."""
    return [action.step for action in actions if not action.up]


def revertible(steps: list[Step]) -> list[Step]:
    """Return the steps that a path down undoes, last to first."""
    return [step for step in reversed(steps) if isinstance(step, HostStep) and not step.sticky]


def test_publish_by_value() -> None:
    assert words(plans.publish(VOLUME, PUBLICATION, HOW, [])) == [
        "create backstore zfsilo-UID for tank/data",
        "create target TARGET",
        "add backstore zfsilo-UID as LUN 0 to target TARGET",
        "create ACL of CLIENT on TARGET",
        "map LUN 0 of TARGET for CLIENT",
        "listen at 10.77.0.1:3260 for target TARGET",
        "enable target TARGET",
    ]


@pytest.mark.parametrize(
    ("volume", "publication", "other"),
    [(VOLUME, SECOND, PUBLICATION), (NVME_VOLUME, NVME_SECOND, NVME_PUBLICATION)],
    ids=["iscsi", "nvme"],
)
def test_a_publication_beside_another_lets_no_client_in_before_that_one(
    volume: Volume, publication: Publication, other: Publication
) -> None:
    """After a boot: a reservation of the other client is in force as soon as its LUN is mapped."""
    steps = [action.step for action in plans.publish(volume, publication, HOW, [other])]
    opens = min(index for index, step in enumerate(steps) if isinstance(step, Portals | Enabled))
    allowed = [
        (type(step), step.initiator) for step in steps[:opens] if isinstance(step, Acl | MappedLun)
    ]
    kinds = [Acl, MappedLun] if volume is VOLUME else [Acl]
    assert allowed == [(kind, one.initiator) for one in (other, publication) for kind in kinds]
    assert all(isinstance(step, Portals | Enabled) for step in steps[opens:])


def test_unpublish_by_value() -> None:
    assert words(plans.unpublish(VOLUME, PUBLICATION, HOW, [])) == [
        "check that CLIENT is not logged in to TARGET",
        "unmap LUN 0 of TARGET for CLIENT",
        "check that CLIENT is not logged in to TARGET",
        "remove ACL of CLIENT from TARGET",
        "disable target TARGET",
        "stop listening for target TARGET",
        "remove LUN 0 from target TARGET",
        "remove target TARGET",
        "remove backstore zfsilo-UID",
        "remove the saved persistent reservations of any client",
    ]


def test_attach_by_value() -> None:
    assert words(
        plans.up(
            [
                *plans.connection_steps(ATTACHMENT),
                *plans.staging_steps(ATTACHMENT),
                *plans.mounting_steps(ATTACHMENT, MOUNT),
            ]
        )
    ) == [
        "create node record of TARGET at 10.77.0.1:3260",
        "recover the session with TARGET at 10.77.0.1:3260",
        "log in to TARGET",
        "let I/O to TARGET wait without limit for a lost session",
        "rescan the disk of TARGET until it has 1 GiB",
        "report to give that the ext4 of data is FORMATTING",
        "create ext4 filesystem on the disk of TARGET",
        "report to give that the ext4 of data is READY",
        "create mount point /staging/data",
        "mount ext4 of TARGET at /staging/data",
        "grow the filesystem at /staging/data to the size of its disk",
        "create mount point /srv/data",
        "bind-mount /staging/data at /srv/data",
    ]


def test_create_and_clone_by_value() -> None:
    properties = "compression=lz4, snapdev=hidden, sync=always, volmode=dev"
    assert words(plans.up([plans.zvol(VOLUME)])) == [
        f"create zvol tank/data (1 GiB, thin, blocks of 16 KiB, {properties})"
    ]
    assert words(plans.clone(COPY, ORIGIN.but(own=True), "01jd")) == [
        "clone zvol tank/data to tank/copy",
        "reserve the whole size of zvol tank/copy",
        "grow zvol tank/copy to 2 GiB",
    ]


@pytest.mark.parametrize("fence", [None, plans.Fence(grace_s=3)], ids=["guarded", "fenced"])
@pytest.mark.parametrize("is_last", [True, False], ids=["the last client", "one of two"])
@pytest.mark.parametrize(
    ("volume", "publication", "other"),
    [(VOLUME, PUBLICATION, SECOND), (NVME_VOLUME, NVME_PUBLICATION, NVME_SECOND)],
    ids=["iscsi", "nvme"],
)
def test_unpublish_mirrors_publish(
    volume: Volume,
    publication: Publication,
    other: Publication,
    *,
    is_last: bool,
    fence: plans.Fence | None,
) -> None:
    others = [] if is_last else [other]
    published = [step.step for step in plans.publish(volume, publication, HOW, others)]
    gone = plans.unpublish(volume, publication, HOW, others, fence=fence)
    granted = plans.grant(volume, publication, HOW, others)
    kept = [] if is_last else plans.export_steps(volume, HOW)
    kept += [step for one in others for step in plans.grant(volume, one, HOW, [publication])]
    own = [step for step in published if step not in kept]
    assert [step for step in own if step in granted] == granted
    # A client over iSCSI loses its access while the target still listens.
    assert sorted(undone(gone), key=repr) == sorted(own, key=repr)
    for steps in (granted, [step for step in own if step not in granted]):
        assert [step for step in undone(gone) if step in steps] == steps[::-1]
    assert all(isinstance(action.step, CHECKS) for action in gone if action.up)


def test_over_nvme_the_ports_come_last_and_go_first() -> None:
    """A client that finds a subsystem which does not allow it gives its controller up for good."""
    published = plans.publish(NVME_VOLUME, NVME_PUBLICATION, HOW, [])
    kinds = [Target, Namespace, ControllerIds, Acl, Portals]
    assert [type(action.step) for action in published] == kinds
    gone = plans.unpublish(NVME_VOLUME, NVME_PUBLICATION, HOW, [])
    assert [type(action.step) for action in gone] == [
        NoSession,
        Portals,
        Acl,
        ControllerIds,
        Namespace,
        Target,
    ]
    fenced = plans.unpublish(
        NVME_VOLUME, NVME_PUBLICATION, HOW, [NVME_SECOND], fence=plans.Fence(grace_s=0)
    )
    assert [type(action.step) for action in fenced] == [Fenced, Acl, Reopened]
    assert [action.up for action in fenced] == [True, False, True]


@pytest.mark.parametrize("attachment", [ATTACHMENT, BLOCK, CLONED], ids=["ext4", "raw", "clone"])
def test_a_detach_path_mirrors_its_attach_path(attachment: Attachment) -> None:
    mount = attachment.mounts[0]
    paths = (
        (plans.unmounting(attachment, mount), plans.mounting_steps(attachment, mount)),
        (plans.unstaging(attachment), plans.staging_steps(attachment)),
        (
            plans.detach_path(attachment, plans.disconnecting(attachment)),
            plans.disconnecting(attachment),
        ),
    )
    for down, steps in paths:
        assert undone(down) == revertible(steps)
        first, *guards = [action.step for action in down if action.up]
        assert first == DiskResponsive(disk=attachment.disk)
        assert all(isinstance(step, Guard) for step in guards)


def test_a_mount_point_that_was_there_before_stays() -> None:
    theirs = ATTACHMENT.but(made_staging_path=False)
    paths = (
        plans.unmounting(ATTACHMENT, MOUNT.but(made_path=False)),
        plans.unstaging(theirs),
        plans.forced_unmount(ATTACHMENT, [MOUNT.but(made_path=False)]),
        plans.forced_detach_path(theirs.but(mounts=())),
    )
    for path in paths:
        assert not any(isinstance(step, MountPoint) for step in undone(path))


def test_a_forced_detach_path_drops_the_session_first() -> None:
    path = plans.forced_detach_path(ATTACHMENT)
    named, *others = path
    assert named.step == UsersNamed(disk=ATTACHMENT.disk, paths=ATTACHMENT.paths)
    assert [type(action.step) for action in others if action.up] == [
        SessionDropped,
        LazyUnmounted,
        LazyUnmounted,
    ]
    assert isinstance(others[0].step, SessionDropped)
    assert [step.path for step in undone(path) if isinstance(step, MountPoint)] == [
        MOUNT.path,
        ATTACHMENT.staging_path,
    ]


@pytest.mark.parametrize("example", PLANS, ids=lambda example: example.name)
def test_a_final_action_that_destroys_is_last(example: Example) -> None:
    """Before it, everything can be reverted: so only such actions may follow it."""
    destroying = [isinstance(a.step, DESTROYERS) and a.final for a in example.actions]
    assert destroying == sorted(destroying)


def test_the_facts_of_a_volume_without_publications_are_that_nothing_is_exported() -> None:
    """By no transport: an export that a lost store left would admit its clients."""
    facts = plans.server_facts(VOLUME, [], HOW)
    exported = plans.export_steps(VOLUME, HOW), plans.export_steps(NVME_VOLUME, HOW)
    assert undone(facts) == [step for steps in exported for step in steps[::-1]]
    assert [type(action.step) for action in facts if action.up] == [
        Zvol,
        NotNewer,
        ZvolSize,
        ZvolProperty,
        NoUnknownAcls,
        NoUnknownAcls,
        NoReservations,
    ]


def test_a_target_answers_when_the_access_of_all_clients_is_there() -> None:
    """A reservation is in force when the LUN is mapped for its holder, and excludes the others."""
    facts = plans.server_facts(VOLUME, [PUBLICATION, SECOND], HOW)
    kinds = [type(action.step) for action in facts]
    last = max(index for index, kind in enumerate(kinds) if kind is MappedLun)
    assert last < kinds.index(Portals) < kinds.index(Enabled)


@pytest.mark.parametrize("fence", [None, plans.Fence(grace_s=3)], ids=["guarded", "fenced"])
def test_reservations_are_forgotten_after_the_access(fence: plans.Fence | None) -> None:
    """As long as the kernel has a registration, it may write it again."""
    one = plans.unpublish(VOLUME, PUBLICATION, HOW, [SECOND], fence=fence)
    assert one[-1].step == NoReservations(serial=UID, client=TAKE)
    assert isinstance(one[-2].step, Acl)
    every = plans.unpublish(VOLUME, PUBLICATION, HOW, [], fence=fence)
    assert every[-1].step == NoReservations(serial=UID)
    shared = plans.unpublish(VOLUME, PUBLICATION, HOW, [], fence=fence, shared=True)
    assert shared[-1].step == NoReservations(serial=UID, client=TAKE), "another target has some"
    again = plans.revoke(VOLUME, PUBLICATION, HOW, [])
    assert again[-1].step == NoReservations(serial=UID, client=TAKE)
    nvme = plans.unpublish(NVME_VOLUME, NVME_PUBLICATION, HOW, [], fence=fence)
    assert not any(isinstance(action.step, NoReservations) for action in nvme)


@pytest.mark.parametrize(
    ("chosen", "value"), [((), "always"), ((("sync", "standard"),), "standard")]
)
def test_the_durability_of_writes_is_a_fact(chosen: Pairs, value: str) -> None:
    """A property that was changed by hand is a difference, and its repair is never undone."""
    facts = plans.server_facts(VOLUME.but(properties=chosen), [], HOW)
    (step,) = [action.step for action in facts if isinstance(action.step, ZvolProperty)]
    assert (step.name, step.value, step.previous) == ("sync", value, value)


def test_the_facts_of_a_volume_are_those_that_its_plans_make() -> None:
    both = plans.server_facts(VOLUME, [PUBLICATION, SECOND], HOW)
    assert all(action.up for action in both)
    steps = [action.step for action in both]
    for publication, other in ((PUBLICATION, SECOND), (SECOND, PUBLICATION)):
        published = plans.publish(VOLUME, publication, HOW, [other])
        assert all(action.step in steps for action in published)


@pytest.mark.parametrize(
    ("state", "count"), [("ABSENT", 0), ("CONNECTED", 4), ("STAGED", 12), ("MOUNTED", 14)]
)
def test_the_facts_of_an_attachment_grow_with_its_state(state: str, count: int) -> None:
    mounts = ATTACHMENT.mounts if state == "MOUNTED" else ()
    facts = plans.client_facts(ATTACHMENT.but(state=state, mounts=mounts))
    assert len(facts) == count
    assert facts == plans.client_facts(ATTACHMENT.but(mounts=mounts))[:count]


def test_a_change_of_properties_names_the_way_back() -> None:
    (action,) = plans.properties(VOLUME, {"compression": ""})
    assert action.step == ZvolProperty(
        dataset="tank/data", name="compression", value="", previous="lz4"
    )
    assert plans.properties(VOLUME, {"compression": "lz4"}) == ()
    assert plans.properties(VOLUME, {"sync": ""}) == ()
    assert plans.mark_changes(VOLUME, VOLUME) == ()


def test_plans_are_pure() -> None:
    """The same records give the same actions, and the records stay as they are."""
    made: tuple[Callable[[], tuple[Action, ...]], ...] = (
        lambda: plans.publish(VOLUME, PUBLICATION, HOW, [SECOND]),
        lambda: plans.unpublish(VOLUME, PUBLICATION, HOW, [SECOND]),
        lambda: plans.clone(COPY, ORIGIN, "01jd"),
        lambda: plans.client_facts(ATTACHMENT),
        lambda: plans.forced_detach_path(ATTACHMENT),
        lambda: plans.growth(ATTACHMENT, 2 << 30),
        lambda: plans.new_secrets([(ATTACHMENT, ATTACHMENT.but(rotation=1))]),
    )
    for plan in made:
        assert plan() == plan()
        assert {action.status for action in plan()} == {"PENDING"}

"""Whoever uses a disk or a zvol is asked before anything of it is removed; a forced path names it.

One table has every request that removes or cuts: with a use that refuses it, at the moment of its
unit, although nothing used it when it was planned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.service_fixture import SETTINGS, service_fixture
from zfsilod.model.errors import Unavailable, ZfsiloError
from zfsilod.model.host_facts import Disk
from zfsilod.model.records import Attachment, Operation, Volume
from zfsilod.requests.attach import Grow, MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume, PurgeVolume
from zfsilod.requests.detach import Clear, Disconnect, UnmountFrom, Unstage
from zfsilod.requests.hosts import DeleteHost
from zfsilod.requests.orphans import RemoveOrphans
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.orphan_scan import find_orphans

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.service_fixture import ServiceFixture
    from zfsilod.requests.request import Request

GIB = 1 << 30
ZVOL = "tank/zfsilo/data"
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
PUBLISHED = (CREATE, Publish(volume="data", host="take"))
CONNECTED = (*PUBLISHED, Connect(id="data", server="give", volume="data"))
STAGED = (*CONNECTED, Stage(id="data"))
MOUNTED = (*STAGED, MountAt(id="data", path="/srv/data"))
RAW = (CREATE.but(mode="BLOCK"), *MOUNTED[1:])
SECOND = MountAt(id="data", path="/srv/more")


def uid(fixture: ServiceFixture) -> str:
    with fixture.service.context.store.read() as txn:
        volume = txn.get(Volume, "data")
        assert volume is not None
        return volume.uid


def add_user(fixture: ServiceFixture, of: str, kind: str = "process") -> None:
    """Let a virtual machine open a disk, by its serial, or a zvol, by its name."""
    fixture.host.facts.effect("user:qemu (4711)", {"of": of, "kind": kind})


async def forget(fixture: ServiceFixture, *buckets: str) -> None:
    """Lose records."""
    for bucket in buckets:
        key = "data/take" if bucket == "publication" else "data"
        await fixture.service.context.write(lambda txn, b=bucket, k=key: txn.drop(b, k))  # type: ignore[misc]


async def orphan(fixture: ServiceFixture, kind: str) -> Request[Any]:
    names = [one.name for one in await find_orphans(fixture.service.context)]
    return RemoveOrphans(names=tuple(name for name in names if name.startswith(kind)))


async def disk_user(fixture: ServiceFixture) -> None:
    add_user(fixture, uid(fixture))


async def zvol_user(fixture: ServiceFixture) -> None:
    add_user(fixture, ZVOL)


async def nothing(_fixture: ServiceFixture) -> None:
    return None


def lost(*buckets: str, of: str = "") -> Callable[[ServiceFixture], Awaitable[None]]:
    async def lose(fixture: ServiceFixture) -> None:
        owner = of or uid(fixture)
        await forget(fixture, *buckets)
        add_user(fixture, owner)

    return lose


async def lose_access(fixture: ServiceFixture) -> None:
    await forget(fixture, "publication")


class Removal(NamedTuple):
    """A request that removes something, what it needs, and the use that it has to ask for."""

    before: tuple[Request[Any], ...]
    use: Callable[[ServiceFixture], Awaitable[None]]
    request: Request[Any] | str  # or the kind of an orphan
    refusal: str


REMOVALS = {
    "unmount-raw": Removal(RAW, disk_user, UnmountFrom(id="data"), "in use by qemu"),
    "unstage": Removal(STAGED, disk_user, Unstage(id="data"), "in use by qemu"),
    "disconnect": Removal(CONNECTED, disk_user, Disconnect(id="data"), "in use by qemu"),
    "delete": Removal((CREATE,), zvol_user, DeleteVolume(id="data"), "in use by qemu"),
    "unpublish": Removal(CONNECTED, nothing, Unpublish(volume="data"), "still logged in"),
    "delete-published": Removal(PUBLISHED, nothing, DeleteVolume(id="data"), "is published to"),
    "delete-host": Removal(PUBLISHED, nothing, DeleteHost(id="take"), "are published to take"),
    "sync": Removal(CONNECTED, lose_access, SyncVolume(id="data"), "no publication"),
    "orphan-zvol": Removal((CREATE,), lost("volume", of=ZVOL), "zvol", "in use by qemu"),
    "orphan-export": Removal(CONNECTED, lost("volume", "publication"), "export", "in use by iqn"),
    "orphan-acl": Removal(CONNECTED, lose_access, "acl", "in use by iqn"),
    "orphan-session": Removal(CONNECTED, lost("attachment"), "session", "in use by qemu"),
    "orphan-node": Removal(CONNECTED, lost("attachment"), "node", "is logged in to"),
}


@pytest.mark.parametrize("removal", REMOVALS.values(), ids=REMOVALS)
async def test_a_removal_asks_for_users_first(fixture: ServiceFixture, removal: Removal) -> None:
    await fixture.do(*removal.before)
    await removal.use(fixture)
    request = removal.request
    if isinstance(request, str):
        request = await orphan(fixture, request)
    before = fixture.facts
    with pytest.raises(ZfsiloError, match=removal.refusal):
        await fixture.do(request)
    assert fixture.facts == before, "nothing was removed"


async def test_a_deletion_into_the_trash_asks_for_users(tmp_path: Path) -> None:
    async with service_fixture(tmp_path, SETTINGS.but(trash_retention_s=3600)) as patient:
        await patient.do(CREATE)
        add_user(patient, ZVOL)
        before = patient.facts
        with pytest.raises(ZfsiloError, match="in use by qemu"):
            await patient.do(DeleteVolume(id="data"))
        assert patient.facts == before
        patient.host.facts.effect("user:qemu (4711)", None)
        await patient.do(DeleteVolume(id="data"))
        with patient.service.context.store.read() as txn:
            (trash,) = [name.removeprefix("trashed/") for name in _keys(txn)]
        name = next(name for name in patient.facts if ".trash" in name).removeprefix("zvol:")
        add_user(patient, name)
        with pytest.raises(ZfsiloError, match="in use by qemu"):
            await patient.do(PurgeVolume(id=trash))


def _keys(txn: Any) -> list[str]:
    from zfsilod.model.records import Trashed

    return [record.key for record in txn.scan(Trashed)]


async def test_a_session_without_a_record_is_ended_for_no_user_only(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*CONNECTED)
    with fixture.service.context.store.read() as txn:
        attachment = txn.get(Attachment, "data")
    assert attachment is not None
    await lost("attachment")(fixture)
    before = fixture.facts
    with pytest.raises(ZfsiloError, match="in use by qemu"):
        await fixture.do(Clear(id="data", disk=attachment.disk, paths=()))
    assert fixture.facts == before


@pytest.mark.parametrize("request_", [Unstage(id="data"), Disconnect(id="data")], ids=["un", "dis"])
async def test_unknown_users_are_not_no_users(
    fixture: ServiceFixture, request_: Request[Any]
) -> None:
    await fixture.do(*(STAGED if isinstance(request_, Unstage) else CONNECTED))
    add_user(fixture, uid(fixture), "hidden")
    before = fixture.facts
    with pytest.raises(Unavailable, match="not known whether"):
        await fixture.do(request_)
    assert fixture.facts == before


@pytest.mark.parametrize(
    "request_",
    [
        UnmountFrom(id="data", force=True),
        Unstage(id="data", force=True),
        Disconnect(id="data", force=True),
    ],
    ids=["unmount", "unstage", "disconnect"],
)
async def test_a_forced_path_names_whom_it_cuts_off(
    fixture: ServiceFixture, request_: Request[Any]
) -> None:
    await fixture.do(*RAW)
    add_user(fixture, uid(fixture))
    operation = await fixture.do(request_)
    assert operation.title.endswith("; cut off qemu (4711)")
    with fixture.service.context.store.read() as txn:
        stored = txn.get(Operation, operation.id)
    assert stored is not None
    assert stored.title == operation.title


async def test_a_forced_removal_of_a_session_names_its_users(fixture: ServiceFixture) -> None:
    await fixture.do(*CONNECTED)
    await lost("attachment")(fixture)
    request = await orphan(fixture, "session")
    assert isinstance(request, RemoveOrphans)
    operation = await fixture.do(request.but(force=True))
    assert "cut off qemu (4711)" in operation.title


async def test_one_of_several_paths_of_a_raw_device_is_unmounted(fixture: ServiceFixture) -> None:
    """A pod leaves, another one on the same host continues."""
    await fixture.do(*RAW, SECOND)
    add_user(fixture, uid(fixture))
    await fixture.do(UnmountFrom(id="data", path="/srv/more"))
    with pytest.raises(ZfsiloError, match="in use by qemu"):
        await fixture.do(UnmountFrom(id="data", path="/srv/data"))


async def test_a_volume_grows_while_it_is_used(fixture: ServiceFixture) -> None:
    """Growing removes nothing."""
    await fixture.do(*RAW)
    add_user(fixture, uid(fixture))
    larger = UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB)
    await fixture.do(larger, Grow(id="data"))


async def test_a_used_zvol_is_not_exported(fixture: ServiceFixture) -> None:
    """Two writers, one of them a process of the server."""
    await fixture.do(CREATE)
    add_user(fixture, ZVOL)
    with pytest.raises(ZfsiloError, match="in use by qemu"):
        await fixture.do(PUBLISHED[1])
    assert not fixture.host.lio.list_targets()


async def test_users_are_named_for_an_inventory(fixture: ServiceFixture) -> None:
    await fixture.do(*CONNECTED)
    serial = uid(fixture)
    fixture.host.facts.effect("user:dm-3", {"of": serial, "kind": "kernel"})
    disk = Disk(target=fixture.host.iscsi.sessions()[0], serial=serial, size_bytes=GIB)
    assert fixture.host.iscsi.users(disk) == ["dm-3"]

"""A server whose host name or prefix changes: what it exported keeps its names.

Fencing, orphans and deletions look at every target that leads to the zvol, whatever its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import HOW, TAKE
from tests.service_fixture import SETTINGS, administrator
from zfsilod.engine import plans
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.records import Publication, Volume
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.orphans import RemoveOrphans
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.orphan_scan import find_orphans

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.storage.transaction import Transaction

GIB = 1 << 30
NAS = HOW.but(prefix="iqn.2026-01.org.zfsilo:nas")
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
PUBLISH = Publish(volume="data", host="take")
CONNECT = Connect(id="data", server="give", volume="data")
FENCE = Unpublish(volume="data", fence=True, grace_s=0)
FOREIGN = "iqn.2003-01.org.linux-iscsi.give:sn.1"


def rename(fixture: ServiceFixture) -> None:
    """Restart the daemon under another host name, from which its prefix is derived."""
    fixture.service.context.settings = SETTINGS.but(export=NAS)


def volume(fixture: ServiceFixture) -> Volume:
    with fixture.service.context.store.read() as txn:
        record = txn.get(Volume, "data")
    assert record is not None
    return record


def targets(fixture: ServiceFixture) -> list[str]:
    return fixture.host.lio.list_targets()


async def lose(fixture: ServiceFixture, *records: tuple[str, str]) -> None:
    """Remove records behind the daemon, as the loss of a store does."""

    def drop(txn: Transaction) -> None:
        for bucket, key in records:
            txn.drop(bucket, key)

    await fixture.service.context.write(drop)


def serve_twice(fixture: ServiceFixture) -> str:
    """Export the volume by a second target, as an older zfsilo did after a rename."""
    record = volume(fixture)
    second = record.but(target=f"{NAS.prefix}:{record.uid}")
    with fixture.service.context.store.read() as txn:
        publication = txn.get(Publication, "data/take")
    assert publication is not None
    for action in plans.publish(second, publication, NAS, []):
        if not action.step.probe(fixture.host):  # type: ignore[attr-defined]
            action.step.do(fixture.host)  # type: ignore[attr-defined]
    return second.target


def export_with_another_tool(fixture: ServiceFixture, initiator: str) -> None:
    """Make the backstore of the volume a LUN of an administrator's target."""
    facts = fixture.host.facts
    facts.effect(f"target:{FOREIGN}", "ready")
    facts.effect(f"lun:{FOREIGN}", plans.backstore_name(volume(fixture)))
    facts.effect(f"acl:{FOREIGN}/{initiator}", "its own secrets")


async def test_an_export_keeps_its_names_when_the_prefix_changes(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    before = fixture.facts
    rename(fixture)
    report = await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    assert fixture.facts == before
    assert not report.reports
    connection, _chap = await fixture.server.fetch("give", "data")
    assert connection.target == targets(fixture)[0] == f"{HOW.prefix}:{volume(fixture).uid}"
    await fixture.do(PUBLISH, CONNECT, Disconnect(id="data"), Unpublish(volume="data"))
    assert not targets(fixture)
    assert not fixture.host.lio.list_backstores()


async def test_a_new_export_has_the_new_prefix(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, Unpublish(volume="data"))
    rename(fixture)
    await fixture.do(PUBLISH)
    assert targets(fixture) == [f"{NAS.prefix}:{volume(fixture).uid}"]
    assert volume(fixture).target == targets(fixture)[0]


@pytest.mark.parametrize("reboot", [False, True])
async def test_an_export_of_an_older_version_is_recorded_as_it_is(
    fixture: ServiceFixture, reboot: bool
) -> None:
    await fixture.do(CREATE, PUBLISH)
    old = targets(fixture)
    await fixture.service.context.write(
        lambda txn: txn.put(volume(fixture).but(target="", backstore=""))
    )
    rename(fixture)
    if reboot:
        memory = fixture.host.facts.memory
        for name in list(memory):
            if not name.startswith(("zvol:", "content:")):
                del memory[name]
    await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    assert targets(fixture) == old
    assert volume(fixture).target == old[0]


async def test_a_fence_ends_the_access_by_every_target(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, CONNECT)
    second = serve_twice(fixture)
    fixture.host.facts.effect(f"session:{second}", {"initiator": TAKE, "serial": "", "size": 1})
    await fixture.do(FENCE)
    assert not targets(fixture)
    assert not fixture.host.facts.names("acl")
    assert not fixture.host.lio.list_backstores()


async def test_a_session_with_the_other_target_refuses_an_unpublish(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE, PUBLISH)
    second = serve_twice(fixture)
    fixture.host.facts.effect(f"session:{second}", {"initiator": TAKE, "serial": "", "size": 1})
    with pytest.raises(FailedPrecondition, match="take is still logged in"):
        await fixture.do(Unpublish(volume="data"))
    assert second in targets(fixture)


async def test_a_volume_with_an_old_target_can_be_unpublished(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    serve_twice(fixture)
    await fixture.do(Unpublish(volume="data"), DeleteVolume(id="data"))
    assert not targets(fixture)


async def test_a_target_of_another_tool_refuses_a_fence_that_it_would_undo(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE, PUBLISH)
    export_with_another_tool(fixture, TAKE)
    before = fixture.facts
    with pytest.raises(FailedPrecondition, match=FOREIGN):
        await fixture.do(FENCE)
    assert fixture.facts == before


async def test_a_fence_succeeds_beside_a_target_that_does_not_admit_the_host(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE, PUBLISH)
    export_with_another_tool(fixture, "iqn.2024-01.lab.other:host")
    await fixture.do(FENCE)
    assert targets(fixture) == [FOREIGN]
    orphans = await find_orphans(fixture.service.context)
    assert [orphan.name for orphan in orphans] == [f"target/{FOREIGN}"]
    report = await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    assert FOREIGN in dict(report.complaints)["data"]


async def test_reservations_stay_while_a_target_of_another_tool_has_the_backstore(
    fixture: ServiceFixture,
) -> None:
    """The kernel saves those of both targets in one file: by the serial."""
    await fixture.do(CREATE, PUBLISH)
    other = "iqn.2024-01.lab.other:host"
    export_with_another_tool(fixture, other)
    uid = volume(fixture).uid
    fixture.host.facts.effect(f"aptpl:{uid}", [TAKE, other])
    await fixture.do(FENCE)
    assert fixture.host.facts.get(f"aptpl:{uid}") == [other]
    await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    assert fixture.host.facts.get(f"aptpl:{uid}") == [other]
    fixture.host.lio.remove_lun(FOREIGN)
    await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    assert fixture.host.facts.get(f"aptpl:{uid}") is None


async def test_the_first_publication_gives_no_former_reservations_back(
    fixture: ServiceFixture,
) -> None:
    """The volume may come from another server, which had it after the reservation was saved."""
    await fixture.do(CREATE, PUBLISH, Unpublish(volume="data"))
    uid = volume(fixture).uid
    fixture.host.facts.effect(f"aptpl:{uid}", [TAKE])
    await fixture.do(PUBLISH)
    assert fixture.host.facts.get(f"aptpl:{uid}") is None
    fixture.host.facts.effect(f"aptpl:{uid}", [TAKE])
    fixture.host.facts.reboot()
    await fixture.do(PUBLISH)
    assert fixture.host.facts.get(f"aptpl:{uid}") == [TAKE], "of a standing publication"


async def test_an_open_target_refuses_a_fence_that_it_would_undo(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(CREATE, PUBLISH)
    export_with_another_tool(fixture, "iqn.2024-01.lab.other:host")
    paths = [path.but(open=path.target == FOREIGN) for path in fixture.host.lio.export_paths()]
    monkeypatch.setattr(fixture.host.lio, "export_paths", lambda: paths)
    with pytest.raises(FailedPrecondition, match=FOREIGN):
        await fixture.do(FENCE)
    assert TAKE in fixture.host.lio.list_acls(volume(fixture).target)


async def test_orphans_name_the_other_targets_of_a_volume(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    second = serve_twice(fixture)
    export_with_another_tool(fixture, "iqn.2024-01.lab.other:host")
    names = [orphan.name for orphan in await find_orphans(fixture.service.context)]
    assert names == [f"target/{FOREIGN}", f"target/{second}"]
    with pytest.raises(FailedPrecondition, match="not made by zfsilo"):
        await fixture.do(RemoveOrphans(names=(f"target/{FOREIGN}",)))
    await fixture.do(RemoveOrphans(names=(f"target/{second}",)))
    assert targets(fixture) == [FOREIGN, volume(fixture).target]


async def test_an_export_of_another_prefix_without_a_record_is_an_orphan(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE, PUBLISH)
    serve_twice(fixture)
    uid = volume(fixture).uid
    with fixture.service.context.store.read() as txn:
        publication = txn.get(Publication, "data/take")
    assert publication
    await lose(fixture, ("publication", "data/take"), ("volume", "data"))
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(prefix="iqn.2026-01.org.x:y"))
    names = [orphan.name for orphan in await find_orphans(fixture.service.context)]
    assert names == [f"export/{uid}", "zvol/tank/zfsilo/data"]
    await fixture.do(RemoveOrphans(names=tuple(names)))
    assert not targets(fixture)
    assert not fixture.host.facts.names("zvol")


async def test_a_deletion_is_refused_while_a_target_has_the_zvol(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, Unpublish(volume="data"))
    fixture.service.context.settings = SETTINGS.but(trash_retention_s=60)
    dataset = volume(fixture).dataset
    fixture.host.facts.effect("backstore:admin", {"dataset": dataset, "serial": "x", "enabled": 1})
    fixture.host.facts.effect(f"target:{FOREIGN}", "ready")
    fixture.host.facts.effect(f"lun:{FOREIGN}", "admin")
    with pytest.raises(FailedPrecondition, match=FOREIGN):
        await fixture.do(DeleteVolume(id="data"))
    assert fixture.host.facts.names("zvol") == [dataset]


async def test_a_target_that_a_lost_store_left_is_used_again(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    old = targets(fixture)
    fixture.host.lio.unmap_lun(old[0], TAKE)
    fixture.host.lio.remove_acl(old[0], TAKE)
    await lose(fixture, ("publication", "data/take"))
    await fixture.service.context.write(
        lambda txn: txn.put(volume(fixture).but(state="CREATED", target="", backstore=""))
    )
    rename(fixture)
    await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    await fixture.do(PUBLISH)
    assert targets(fixture) == old

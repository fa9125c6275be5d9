"""The mark of a volume's filesystem: record and zvol must both allow mkfs; reports are checked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.service_fixture import administrator
from zfsilod.engine import plans
from zfsilod.model.errors import Conflict, FailedPrecondition, ZfsiloError
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.records import Attachment, Publication, Volume
from zfsilod.requests.attach import Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.detach import Unstage
from zfsilod.requests.publications import Publish
from zfsilod.requests.report_filesystem import ReportFilesystem
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.model.words import FilesystemState
    from zfsilod.storage.transaction import Transaction

GIB = 1 << 30
ZVOL = "tank/zfsilo/data"
MARK = "zfsilo:filesystem"
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
OTHER = "7c2bd2e1-4d7f-4e1d-8f1f-1f6e8f409b22"
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
CONNECTED = (
    CREATE,
    Publish(volume="data", host="take"),
    Connect(id="data", server="give", volume="data"),
)
REPORT = ReportFilesystem(
    volume="data", host="take", epoch=1, state="FORMATTING", type="ext4", uuid=UUID, operation="01a"
)


def record(fixture: ServiceFixture) -> Volume:
    with fixture.service.context.store.read() as txn:
        volume = txn.get(Volume, "data")
    assert volume is not None
    return volume


def attachment(fixture: ServiceFixture) -> Attachment:
    with fixture.service.context.store.read() as txn:
        attached = txn.get(Attachment, "data")
    assert attached is not None
    return attached


async def restore(fixture: ServiceFixture, filesystem: Filesystem) -> None:
    """Give the volume and the attachment the filesystem that a restored store has."""

    def older(txn: Transaction) -> None:
        for kind in (Volume, Attachment):
            kept = txn.get(kind, "data")
            if kept is not None:
                txn.put(kept.but(filesystem=filesystem))

    await fixture.service.context.write(older)


@pytest.mark.parametrize("state", ["NONE", "FORMATTING"])
async def test_the_mark_of_the_zvol_wins_over_a_restored_record(
    fixture: ServiceFixture, state: FilesystemState
) -> None:
    await fixture.do(*CONNECTED, Stage(id="data"), Unstage(id="data"))
    ready = record(fixture).filesystem
    uid = record(fixture).uid
    old = Filesystem(state=state, type="ext4", uuid=ready.uuid, operation="01a", host="take")
    await restore(fixture, old if state == "FORMATTING" else Filesystem())
    content = fixture.host.facts.get(f"content:{uid}")
    fixture.host.facts.effect(f"content:{uid}", content | {"whole": False})  # needs a repair
    before = fixture.host.facts.get(f"content:{uid}")
    with pytest.raises(FailedPrecondition) as refusal:
        await fixture.do(REPORT.but(uuid=OTHER))
    assert refusal.value.reason == "FILESYSTEM_READY"
    await fixture.do(Stage(id="data"))
    assert attachment(fixture).filesystem.uuid == ready.uuid
    assert fixture.host.facts.get(f"content:{uid}") == before, "nothing was formatted"


async def test_the_record_wins_over_an_older_mark(fixture: ServiceFixture) -> None:
    await fixture.do(*CONNECTED, Stage(id="data"), Unstage(id="data"))
    fixture.host.zfs.set_property(ZVOL, MARK, f"FORMATTING:ext4:{UUID}:01a")
    with pytest.raises(FailedPrecondition) as refusal:
        await fixture.do(REPORT.but(uuid=OTHER))
    assert refusal.value.reason == "FILESYSTEM_READY"


async def test_the_record_of_the_client_wins_over_a_server_that_forgot(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*CONNECTED, Stage(id="data"), Unstage(id="data"))
    uid = record(fixture).uid

    def forget(txn: Transaction) -> None:
        txn.put(record(fixture).but(filesystem=Filesystem()))

    await fixture.service.context.write(forget)
    fixture.host.zfs.set_property(ZVOL, MARK, "NONE")
    fixture.host.facts.effect(f"content:{uid}", None)  # the server was rolled back, too
    with pytest.raises(Conflict, match="lost its filesystem"):
        await fixture.do(Stage(id="data"))
    assert fixture.host.facts.get(f"content:{uid}") is None


async def test_formatting_is_recorded_without_a_unit(fixture: ServiceFixture) -> None:
    """There is no data before READY, which is on the zvol before the first mount."""
    await fixture.do(CREATE, Publish(volume="data", host="take"))
    before, facts = list(fixture.launcher.starts), fixture.facts
    await fixture.do(REPORT)
    assert fixture.launcher.starts == before
    assert fixture.facts == facts
    await fixture.do(REPORT.but(state="READY"))
    assert len(fixture.launcher.starts) == len(before) + 1
    assert fixture.host.zfs.find_mark(ZVOL, MARK) == f"READY:ext4:{UUID}"


async def test_a_lost_record_of_formatting_formats_no_disk_that_is_not_blank(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*CONNECTED, REPORT)
    uid = record(fixture).uid
    begun = {"type": "ext4", "uuid": UUID, "whole": False}
    fixture.host.facts.effect(f"content:{uid}", begun)
    await restore(fixture, Filesystem())
    with pytest.raises(ZfsiloError):
        await fixture.do(Stage(id="data"))
    assert fixture.host.facts.get(f"content:{uid}") == begun


async def test_a_mark_has_operation_host_and_uuid(fixture: ServiceFixture) -> None:
    formatting = f"FORMATTING:ext4:{UUID}:01a:take"
    await fixture.do(CREATE, Publish(volume="data", host="take"), REPORT)
    assert plans.filesystem_mark(record(fixture).filesystem) == formatting
    fixture.host.zfs.set_property(ZVOL, MARK, f"FORMATTING:xfs:{UUID}:000:other")
    await fixture.do(REPORT)
    assert fixture.host.zfs.find_mark(ZVOL, MARK) == formatting
    with pytest.raises(FailedPrecondition) as refusal:
        await fixture.do(REPORT.but(uuid=OTHER, operation="01b"))
    assert refusal.value.reason == "OTHER_FILESYSTEM"
    await fixture.do(REPORT.but(type="xfs", operation="01b"))  # after mkfs was refused, say
    await fixture.do(REPORT.but(type="xfs", state="READY"))
    assert fixture.host.zfs.find_mark(ZVOL, MARK) == f"READY:xfs:{UUID}"


@pytest.mark.parametrize("state", ["FORMATTING", "READY"])
@pytest.mark.parametrize("readonly", [True, False])
async def test_a_reader_reports_nothing(
    fixture: ServiceFixture, state: FilesystemState, *, readonly: bool
) -> None:
    create = CREATE.but(access_modes=("SINGLE_NODE_WRITER", "SINGLE_NODE_READER_ONLY"))
    publish = Publish(volume="data", host="take", readonly=readonly)
    if not readonly:
        publish = publish.but(access_mode="SINGLE_NODE_READER_ONLY")
    await fixture.do(create, publish)
    before = fixture.facts
    with pytest.raises(FailedPrecondition) as refusal:
        await fixture.do(REPORT.but(state=state))
    assert refusal.value.reason == "ACCESS_MODE"
    assert fixture.facts == before
    assert record(fixture).filesystem == Filesystem()


async def test_no_filesystem_is_reported_on_a_raw_block_volume(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE.but(mode="BLOCK"), Publish(volume="data", host="take"))
    with pytest.raises(FailedPrecondition) as refusal:
        await fixture.do(REPORT)
    assert refusal.value.reason == "MODE"


async def test_a_report_of_another_epoch_or_host_is_refused(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, Publish(volume="data", host="take"))
    with fixture.service.context.store.read() as txn:
        publication = txn.get(Publication, "data/take")
    assert publication is not None
    for other in (REPORT.but(epoch=publication.epoch + 1), REPORT.but(host="other")):
        with pytest.raises(FailedPrecondition, match="data is"):
            await fixture.do(other)
    assert re.match(r"NONE$", fixture.host.zfs.find_mark(ZVOL, MARK))


async def test_what_another_host_formats_is_not_reported_ready(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, Publish(volume="data", host="take"))
    formatting = Filesystem(
        state="FORMATTING", type="ext4", uuid=UUID, operation="01z", host="other"
    )
    await restore(fixture, formatting)
    fixture.host.zfs.set_property(ZVOL, MARK, plans.filesystem_mark(formatting))
    with pytest.raises(FailedPrecondition) as refusal:
        await fixture.do(REPORT.but(state="READY"))
    assert refusal.value.reason == "FORMATTING"
    await fixture.do(REPORT, REPORT.but(state="READY"))
    assert administrator("a").local

"""No report of a host moves the filesystem of a volume wrongly, on the record or on the zvol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from zfsilod.model.errors import ZfsiloError
from zfsilod.model.records import Volume
from zfsilod.requests.hosts import CreateHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.report_filesystem import ReportFilesystem
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture

UUID, OTHER = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11", "7c2bd2e1-4d7f-4e1d-8f1f-1f6e8f409b22"
SETUP = (
    CreateVolume(id="data", capacity_bytes=1 << 30),
    CreateHost(id="other", iqn="iqn.2024-01.lab.other:host"),
    Publish(volume="data", host="take"),
)
FORMATTING = ReportFilesystem(
    volume="data",
    host="take",
    epoch=1,
    state="FORMATTING",
    type="ext4",
    uuid=UUID,
    operation="01jd",
)
READY = FORMATTING.but(state="READY")
AGAIN = (Unpublish(volume="data"), Publish(volume="data", host="other"))
LATER = FORMATTING.but(host="other", epoch=3)
REPORTS: dict[str, tuple[tuple[Any, ...], ReportFilesystem]] = {
    "back-to-none": ((FORMATTING,), FORMATTING.but(state="NONE")),
    "cloned": ((), FORMATTING.but(state="CLONED")),
    "cloned-over-ready": ((FORMATTING, READY), FORMATTING.but(state="CLONED")),
    "formatting-over-ready": ((FORMATTING, READY), FORMATTING),
    "other-uuid-over-ready": ((FORMATTING, READY), READY.but(uuid=OTHER)),
    "other-uuid-over-formatting": ((FORMATTING,), FORMATTING.but(uuid=OTHER)),
    "a-host-without-publication": ((), FORMATTING.but(host="other")),
    "former-epoch": ((*AGAIN,), LATER.but(epoch=1)),
    "future-epoch": ((), FORMATTING.but(epoch=2)),
    "former-host": ((*AGAIN,), FORMATTING),
    "ready-of-another-format": ((FORMATTING, *AGAIN), LATER.but(state="READY")),
    "unknown-type": ((), FORMATTING.but(type="ntfs")),
}


@pytest.mark.parametrize(("before", "report"), REPORTS.values(), ids=REPORTS)
async def test_a_wrong_report_changes_nothing(
    fixture: ServiceFixture, before: tuple[Any, ...], report: ReportFilesystem
) -> None:
    await fixture.do(*SETUP, *before)
    facts = fixture.facts
    with fixture.service.context.store.read() as txn:
        volume = txn.get(Volume, "data")
    with pytest.raises(ZfsiloError):
        await fixture.do(report)
    assert fixture.facts == facts
    with fixture.service.context.store.read() as txn:
        assert txn.get(Volume, "data") == volume


@pytest.mark.parametrize("report", [FORMATTING, READY], ids=["formatting", "ready"])
@pytest.mark.parametrize("way", ["readonly", "raw"])
async def test_a_report_without_the_right_to_write_changes_nothing(
    fixture: ServiceFixture, way: str, report: ReportFilesystem
) -> None:
    create, host, publish = SETUP
    raw = create.but(mode="BLOCK") if way == "raw" else create
    access = publish.but(readonly=True) if way == "readonly" else publish
    await fixture.do(raw, host, access)
    facts = fixture.facts
    with pytest.raises(ZfsiloError):
        await fixture.do(report)
    assert fixture.facts == facts

"""Publications over NVMe with TLS: all of a volume or none, keys on both sides, and downgrades."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import TAKE
from tests.service_fixture import ServiceFixture, administrator, service_fixture
from tests.test_nvme import CONNECT, CREATE, OTHER, PUBLISH, SHARED, publications, volume
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.model.records import Attachment
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.hosts import CreateHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.rotate_secrets import RefreshSecrets, RotateSecrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from zfsilod.requests.request import Request

WITH_TLS = PUBLISH.but(tls=True)
PORTALS = ["tls 10.77.0.1:4421"]


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[ServiceFixture]:
    async with service_fixture(tmp_path) as running:
        await running.do(CreateHost(id="take", iqn=TAKE))
        yield running


def ports(fixture: ServiceFixture) -> list[str]:
    (portals,) = fixture.host.facts.of_kind("portals").values()
    return list(portals)


def psks(fixture: ServiceFixture) -> int:
    return len(fixture.host.facts.names("psk"))


def attachment(fixture: ServiceFixture) -> Attachment:
    with fixture.service.context.read() as txn:
        record = txn.get(Attachment, "data")
    assert record is not None
    return record


async def test_a_publication_with_tls_has_the_port_that_requires_it_only(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE, WITH_TLS)
    (publication,) = publications(fixture)
    assert publication.tls
    assert (ports(fixture), psks(fixture)) == (PORTALS, 1)
    assert fixture.service.context.store.chap(publication.secret).has_tls
    await fixture.do(Unpublish(volume="data"))
    assert psks(fixture) == 0


async def test_both_sides_have_the_key_until_the_connection_ends(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, WITH_TLS, CONNECT)
    record = attachment(fixture)
    assert record.tls
    assert record.portals == ("10.77.0.1:4421",)
    chap = fixture.service.context.store.chap
    assert chap(record.secret).tls_key == chap(publications(fixture)[0].secret).tls_key
    await fixture.do(Disconnect(id="data"))
    assert psks(fixture) == 1, "the target of this host needs it"
    await fixture.do(Unpublish(volume="data"))
    assert psks(fixture) == 0


async def test_after_a_boot_the_ports_of_both_kinds_open_when_all_are_ready(
    fixture: ServiceFixture,
) -> None:
    for name, tls in (("one", True), ("two", False), ("three", True)):
        await fixture.do(CREATE.but(id=name), PUBLISH.but(volume=name, tls=tls))
    facts = fixture.host.facts
    before = facts.snapshot()
    facts.reboot()
    report = await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    assert report.complaints == ()
    assert facts.snapshot() == before
    kinds = [name.partition(":")[0] for name in facts.memory]
    for ready in ("psk", "acl"):
        assert kinds.index("portals") > len(kinds) - 1 - kinds[::-1].index(ready)


@pytest.mark.parametrize(
    ("before", "wrong", "error", "reason"),
    [
        ((CREATE,), WITH_TLS.but(transport="ISCSI"), InvalidArgument, "TLS_NEEDS_NVME"),
        ((CREATE,), CREATE.but(id="more", tls=True), InvalidArgument, "TLS_NEEDS_NVME"),
        ((CREATE, PUBLISH), WITH_TLS, AlreadyExists, "ALREADY_EXISTS"),
        (
            (OTHER, SHARED, PUBLISH),
            WITH_TLS.but(host="other"),
            FailedPrecondition,
            "PUBLISHED",
        ),
        ((CREATE, PUBLISH), CONNECT.but(tls=True), FailedPrecondition, "NO_TLS"),
        ((CREATE, PUBLISH, CONNECT), CONNECT.but(tls=True), FailedPrecondition, "NO_TLS"),
    ],
)
async def test_a_refusal_changes_nothing(
    fixture: ServiceFixture,
    before: tuple[Request[object], ...],
    wrong: Request[object],
    error: type[InvalidArgument],
    reason: str,
) -> None:
    await fixture.do(*before)
    await fixture.refuses(wrong, error, reason)


@pytest.mark.parametrize("unnamed", [PUBLISH, Publish(volume="data", host="other")])
async def test_a_second_publication_has_tls_too(fixture: ServiceFixture, unnamed: Publish) -> None:
    """Without TLS it would be linked to a plain port, at which the first one could connect."""
    await fixture.do(OTHER, SHARED, WITH_TLS, unnamed.but(host="other"))
    assert [one.tls for one in publications(fixture)] == [True, True]
    assert ports(fixture) == PORTALS
    assert psks(fixture) == 2
    await fixture.do(Unpublish(volume="data", host="take", fence=True, grace_s=0))
    assert (ports(fixture), psks(fixture)) == (PORTALS, 1)


async def test_a_volume_may_require_tls(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE.but(transport="NVME", tls=True), Publish(volume="data", host="take"))
    assert publications(fixture)[0].tls
    assert fixture.host.zfs.find_mark(volume(fixture).dataset, "zfsilo:tls") == "yes"
    await fixture.do(Unpublish(volume="data"))
    with pytest.raises(InvalidArgument) as refused:
        await fixture.do(PUBLISH.but(transport="ISCSI"))
    assert refused.value.reason == "TLS_NEEDS_NVME"


async def test_a_connect_publishes_with_tls(fixture: ServiceFixture) -> None:
    asked = CONNECT.but(publish_if_needed=True, transport="NVME", tls=True)
    await fixture.do(CREATE, asked)
    assert publications(fixture)[0].tls
    assert attachment(fixture).tls
    await fixture.do(asked)


async def test_a_rotation_replaces_the_key_of_tls(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, WITH_TLS, CONNECT)
    chap = fixture.service.context.store.chap
    before, psk = chap(attachment(fixture).secret), fixture.host.facts.of_kind("psk")
    await fixture.do(
        RotateSecrets(volume="data", force=True), RefreshSecrets(server="give", ids=("data",))
    )
    after = chap(attachment(fixture).secret)
    assert after.tls_key != before.tls_key
    assert after == chap(publications(fixture)[0].secret)
    assert psk.keys() == fixture.host.facts.of_kind("psk").keys()
    assert psk != fixture.host.facts.of_kind("psk")


@pytest.mark.parametrize("lost", ["psk", "portals"])
async def test_what_is_lost_is_repaired(fixture: ServiceFixture, lost: str) -> None:
    await fixture.do(CREATE, WITH_TLS, CONNECT)
    before = fixture.host.facts.of_kind(lost)
    for name in before:
        del fixture.host.facts.memory[f"{lost}:{name}"]
    await fixture.service.reconciler.sync_all(administrator("root"))
    assert fixture.host.facts.of_kind(lost) == before

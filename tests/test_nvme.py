"""Publications over NVMe: their names, what they refuse, and how they are repaired."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.examples import TAKE
from tests.service_fixture import ServiceFixture, administrator, service_fixture
from zfsilod.model.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from zfsilod.model.names import host_nqn
from zfsilod.model.records import Attachment, Host, Publication, Volume
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.hosts import CreateHost, UpdateHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.rotate_secrets import RefreshSecrets, RotateSecrets
from zfsilod.requests.snapshots import CreateSnapshot
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.orphan_scan import find_orphans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GIB = 1 << 30
CREATE = CreateVolume(id="data", capacity_bytes=GIB, hosts=("take",))
PUBLISH = Publish(volume="data", host="take", transport="NVME")
CONNECT = Connect(id="data", server="give", volume="data", restore="BOOT")
SHARED = CREATE.but(mode="BLOCK", access_modes=("MULTI_NODE_MULTI_WRITER",))
OTHER = CreateHost(id="other", iqn="iqn.2024-01.lab.other:host")


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[ServiceFixture]:
    async with service_fixture(tmp_path) as running:
        await running.do(CreateHost(id="take", iqn=TAKE))
        yield running


def volume(fixture: ServiceFixture) -> Volume:
    with fixture.service.context.read() as txn:
        record = txn.get(Volume, "data")
    assert record is not None
    return record


def publications(fixture: ServiceFixture) -> list[Publication]:
    with fixture.service.context.read() as txn:
        return list(txn.scan(Publication))


async def test_a_publication_has_a_host_name_of_its_own(fixture: ServiceFixture) -> None:
    more = CREATE.but(id="more", transport="NVME")
    await fixture.do(CREATE, PUBLISH, more, Publish(volume="more", host="take"))
    one, two = publications(fixture)
    assert {one.transport, two.transport} == {"NVME"}
    assert one.initiator == host_nqn("take", volume(fixture).uid)
    assert one.initiator != two.initiator
    chap = fixture.service.context.store.chap
    assert chap(one.secret).password != chap(two.secret).password
    assert volume(fixture).target.startswith("nqn.2026-01.org.zfsilo:")


async def test_a_rotation_of_one_leaves_the_other(fixture: ServiceFixture) -> None:
    more = CREATE.but(id="more", transport="NVME")
    await fixture.do(CREATE, PUBLISH, more, Publish(volume="more", host="take"))
    before = fixture.host.facts.of_kind("acl")
    await fixture.do(RotateSecrets(volume="data"))
    after = fixture.host.facts.of_kind("acl")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.endswith(f":{volume(fixture).uid}")}


@pytest.mark.parametrize(
    ("before", "wrong", "error", "reason"),
    [
        ((CREATE,), PUBLISH.but(readonly=True), InvalidArgument, "NVME_READONLY"),
        ((CREATE, PUBLISH), PUBLISH.but(transport="ISCSI"), AlreadyExists, "ALREADY_EXISTS"),
        (
            (OTHER, SHARED, PUBLISH),
            PUBLISH.but(host="other", transport="ISCSI"),
            FailedPrecondition,
            "PUBLISHED",
        ),
    ],
)
async def test_a_refusal_changes_nothing(
    fixture: ServiceFixture,
    before: tuple[Publish, ...],
    wrong: Publish,
    error: type[InvalidArgument],
    reason: str,
) -> None:
    await fixture.do(*before)
    await fixture.refuses(wrong, error, reason)


async def test_a_publication_without_a_transport_has_that_of_the_others(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(OTHER, SHARED, PUBLISH, PUBLISH.but(host="other", transport=""))
    assert [one.transport for one in publications(fixture)] == ["NVME", "NVME"]
    await fixture.do(PUBLISH.but(transport=""))


async def test_another_transport_follows_an_unpublication(fixture: ServiceFixture) -> None:
    unpublish = Unpublish(volume="data")
    await fixture.do(CREATE, PUBLISH, unpublish, PUBLISH.but(transport="ISCSI"))
    assert volume(fixture).target.startswith("iqn.")
    await fixture.do(unpublish, PUBLISH)
    assert volume(fixture).target.startswith("nqn.")
    assert fixture.host.lio.list_targets() == []
    assert len(fixture.host.nvmet.list_targets()) == 1


async def test_an_iqn_of_another_name_does_not_matter(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, UpdateHost(id="take", mask=("iqn",), iqn=OTHER.iqn))
    await fixture.do(PUBLISH, CONNECT)


@pytest.mark.parametrize("available", [True, False])
async def test_a_host_without_an_iqn_is_introduced_for_nvme(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch, *, available: bool
) -> None:
    known: list[Host] = []

    async def register(_server: str, host: Host, *, validate_only: bool) -> bool:
        known.append(host)
        return not validate_only

    monkeypatch.setattr(fixture.server, "register", register)
    monkeypatch.setattr(fixture.host.iscsi, "initiator", str)
    monkeypatch.setattr(fixture.host.nvme, "is_available", lambda: available)
    if available:
        assert await fixture.service.introduce("give")
        assert [host.iqn for host in known] == [""]
        return
    with pytest.raises(FailedPrecondition) as caught:
        await fixture.service.introduce("give")
    assert (caught.value.reason, known) == ("NO_IQN", [])


async def test_a_host_without_an_iqn_uses_nvme_only(fixture: ServiceFixture) -> None:
    await fixture.do(CreateHost(id="plain", register=True), CREATE.but(hosts=("plain",)))
    with pytest.raises(FailedPrecondition) as caught:
        await fixture.do(PUBLISH.but(host="plain", transport="ISCSI"))
    assert caught.value.reason == "NO_IQN"
    await fixture.do(PUBLISH.but(host="plain"))
    (publication,) = publications(fixture)
    assert publication.initiator == host_nqn("plain", volume(fixture).uid)


async def test_an_attachment_is_repaired_after_a_reboot(fixture: ServiceFixture) -> None:
    stage, mount = Stage(id="data"), MountAt(id="data", path="/srv/data")
    await fixture.do(CREATE, PUBLISH, CONNECT, stage, mount)
    before = fixture.host.facts.snapshot()
    fixture.host.facts.reboot()
    assert fixture.host.facts.snapshot() != before
    for _pass in range(2):
        await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    assert fixture.host.facts.snapshot() == before


async def test_new_secrets_reach_the_controller(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, CONNECT, RotateSecrets(volume="data", force=True))
    await fixture.do(RefreshSecrets(server="give", ids=("data",)))
    (acl,) = fixture.host.facts.of_kind("acl").values()
    (session,) = fixture.host.facts.of_kind("session").values()
    assert session["chap"] == acl
    with fixture.service.context.read() as txn:
        attachment = txn.get(Attachment, "data")
    assert attachment is not None
    assert attachment.rotation == 1
    await fixture.do(Disconnect(id="data"))
    assert fixture.host.facts.of_kind("session") == {}


async def test_a_foreign_subsystem_of_the_zvol_is_shown_and_kept(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    nvmet, foreign = fixture.host.nvmet, "nqn.2014-08.org.example:other"
    nvmet.add_target(foreign)
    nvmet.add_namespace(foreign, dataset=volume(fixture).dataset, uid="f" * 32)
    (orphan,) = await find_orphans(fixture.service.context)
    assert (orphan.name, orphan.foreign) == (f"target/{foreign}", True)
    await fixture.do(Unpublish(volume="data"))
    assert nvmet.list_targets() == [foreign]


@pytest.mark.parametrize("transport", ["ISCSI", "NVME"])
async def test_a_way_of_the_other_transport_is_closed_too(
    fixture: ServiceFixture, transport: str
) -> None:
    """As a store may leave it that was restored from before a change of the transport."""
    await fixture.do(CREATE, PUBLISH.but(transport=transport))
    record, uid = volume(fixture), volume(fixture).uid
    if transport == "ISCSI":
        left = f"nqn.2026-01.org.zfsilo:give:{uid}"
        fixture.host.facts.effect(f"target:{left}", "ready")
        fixture.host.facts.effect(
            f"namespace:{left}", {"dataset": record.dataset, "uid": uid, "enabled": True}
        )
        fixture.host.facts.effect(f"acl:{left}/{host_nqn('take', uid)}", "former")
    else:
        left = f"iqn.2026-01.org.zfsilo:give:{uid}"
        backstore = {"dataset": record.dataset, "serial": uid, "enabled": True}
        fixture.host.facts.effect(f"backstore:zfsilo-{uid}", backstore)
        fixture.host.facts.effect(f"target:{left}", "ready")
        fixture.host.facts.effect(f"lun:{left}", f"zfsilo-{uid}")
        fixture.host.facts.effect(f"acl:{left}/{TAKE}", "former")
    await fixture.do(Unpublish(volume="data", fence=True, grace_s=0))
    assert fixture.host.facts.of_kind("acl") == {}


@pytest.mark.parametrize("lost", ["", "two"])
async def test_after_a_boot_no_target_listens_before_all_are_ready(
    fixture: ServiceFixture, lost: str
) -> None:
    """A client whose target does not listen where another one does gives its disk up."""
    names = ("one", "two", "three")
    for name in names:
        await fixture.do(CREATE.but(id=name), PUBLISH.but(volume=name))
    facts = fixture.host.facts
    before = {name for name in facts.snapshot() if name.startswith("portals:")}
    facts.reboot()
    if lost:
        del facts.memory[f"zvol:tank/zfsilo/{lost}"]
    report = await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    kinds = [name.partition(":")[0] for name in facts.memory]
    assert kinds.index("portals") > len(kinds) - 1 - kinds[::-1].index("acl")
    assert kinds.count("portals") == len(before) - bool(lost)
    assert [volume for volume, _problem in report.complaints] == ([lost] if lost else [])


FIRST = {
    "a repeated publish": PUBLISH.but(volume="one"),
    "a publish of another volume": PUBLISH.but(volume="new"),
    "a sync": SyncVolume(id="two"),
}


@pytest.mark.parametrize("early", FIRST)
async def test_no_request_opens_the_ports_before_the_first_pass(
    fixture: ServiceFixture, early: str
) -> None:
    """A client whose target does not listen where another one does gives its disk up."""
    service, facts = fixture.service, fixture.host.facts
    for name in ("one", "two", "three"):
        await fixture.do(CREATE.but(id=name), PUBLISH.but(volume=name))
    await fixture.do(CREATE.but(id="new"))
    facts.reboot()
    with service.context.read() as txn:
        service.port_gate.close(txn)
    with pytest.raises(Unavailable, match="are being restored"):
        await service.submit(FIRST[early], caller=administrator("early"), deadline_s=0)
    waiting = asyncio.create_task(fixture.do(FIRST[early]))
    assert await service.reconciler.sync_some(("one",), administrator("watch"))
    assert facts.of_kind("portals") == {}
    report = await service.reconciler.sync_all(caller=administrator("boot"))
    assert not report.complaints
    kinds = [name.partition(":")[0] for name in facts.memory]
    first = kinds.index("portals")
    assert kinds[:first].count("acl") >= 3
    await waiting
    assert service.port_gate.is_open


async def test_the_ports_wait_for_a_volume_in_an_operation(fixture: ServiceFixture) -> None:
    """A snapshot at the boot keeps a volume from the comparison, but its client is there."""
    service, facts = fixture.service, fixture.host.facts
    for name in ("one", "two", "three"):
        await fixture.do(CREATE.but(id=name), PUBLISH.but(volume=name))
    facts.reboot()
    with service.context.read() as txn:
        service.port_gate.close(txn)
    fixture.launcher.gate.clear()
    caller = administrator("timer")
    snapshot = await service.submit(CreateSnapshot(id="first", volume="two"), caller=caller)
    report = asyncio.create_task(service.reconciler.sync_all(caller=administrator("boot")))
    while len(fixture.launcher.starts) < 2:
        await asyncio.sleep(0)
    fixture.launcher.gate.set()
    assert not (await report).complaints
    await service.wait(snapshot.id, 20)
    kinds = [name.partition(":")[0] for name in facts.memory]
    assert kinds.index("portals") > len(kinds) - 1 - kinds[::-1].index("acl")
    assert kinds.count("portals") == 3


async def test_a_target_that_cannot_listen_leaves_the_others_alone(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        await fixture.do(CREATE.but(id=name), PUBLISH.but(volume=name))
    facts, nvmet = fixture.host.facts, fixture.host.nvmet
    facts.reboot()
    (first, _second) = (one.target for one in volumes(fixture))
    add = nvmet.add_portals

    def refused(target: str, portals: tuple[str, ...], *, tls: bool = False) -> None:
        if target == first:
            raise Conflict("port 1 of the kernel's NVMe target requires TLS")
        add(target, portals, tls=tls)

    monkeypatch.setattr(nvmet, "add_portals", refused)
    report = await fixture.service.reconciler.sync_all(caller=administrator("boot"))
    assert len(report.complaints) == 1
    assert facts.names("portals") == [one.target for one in volumes(fixture) if one.target != first]


def volumes(fixture: ServiceFixture) -> list[Volume]:
    with fixture.service.context.read() as txn:
        return list(txn.scan(Volume))

"""A store that is older than its pool: nothing that was written is destroyed, no one is let in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.simulated_machine import SimulatedMachine, simulated_machine
from tests.examples import TAKE, VOLUME, chap
from tests.service_fixture import DEADLINE_S, administrator
from zfsilod.engine import plans
from zfsilod.engine.step import KEPT
from zfsilod.host.fake import FakeHost
from zfsilod.model.errors import CommandFailed, Conflict
from zfsilod.model.marks import epoch_fact
from zfsilod.model.records import Condition, Publication, Volume
from zfsilod.requests.hosts import CreateHost, UpdateHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.pool_scan import find_zvol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from zfsilod.model.chap import Chap
    from zfsilod.requests.request import Request

CREATE = CreateVolume(id="data", capacity_bytes=1 << 30)
PUBLISH = Publish(volume="data", host="take")
DATASET = "tank/zfsilo/data"
NEW_MACHINE = UpdateHost(id="take", mask=("machine",))
HOSTS = UpdateVolume(id="data", mask=("hosts",))
FENCE = Unpublish(volume="data", host="take", fence=True, grace_s=0)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[SimulatedMachine]:
    """A machine with a published volume."""
    async with simulated_machine(tmp_path) as running:
        await running.fixture.do(CreateHost(id="take", iqn=TAKE), CREATE, PUBLISH)
        yield running


async def restore(machine: SimulatedMachine, store: list[tuple[bytes, bytes]]) -> None:
    """Put a copy in place of the store, and let a new daemon compare all volumes."""
    await machine.load((store, machine.host.facts.snapshot()))
    await machine.supervisor.recover()
    await machine.fixture.service.reconciler.sync_all(caller=administrator("boot"))


def acls(machine: SimulatedMachine) -> list[str]:
    return list(machine.host.facts.names("acl"))


def volume(machine: SimulatedMachine) -> Volume:
    with machine.store.read() as txn:
        record = txn.get(Volume, "data")
    assert record is not None
    return record


@pytest.mark.parametrize("change", [FENCE, FENCE.but(fence=False)], ids=["fenced", "unpublished"])
async def test_a_host_without_access_stays_without(
    machine: SimulatedMachine, change: Request[Any]
) -> None:
    backup, _facts = machine.dump()
    await machine.fixture.do(change)
    machine.host.facts.reboot()

    await restore(machine, backup)

    assert acls(machine) == []
    with machine.store.read() as txn:
        condition = txn.get(Condition, volume(machine).uid)
    assert condition is not None
    assert f"zfsiloctl adopt {DATASET}" in condition.sentences[0]
    for request in (PUBLISH, FENCE, RotateSecrets(volume="data", host="take", force=True)):
        with pytest.raises(Conflict) as caught:
            await machine.fixture.do(request)
        assert caught.value.reason == "ZVOL_NEWER"
    assert acls(machine) == []


async def test_secrets_that_were_replaced_do_not_come_back(machine: SimulatedMachine) -> None:
    backup, _facts = machine.dump()
    await machine.fixture.do(RotateSecrets(volume="data", host="take", force=True))
    secrets = machine.host.facts.snapshot()[acl := f"acl:{acls(machine)[0]}"]

    await restore(machine, backup)

    assert machine.host.facts.get(acl) == secrets


async def test_secrets_that_a_new_machine_replaced_do_not_come_back(
    machine: SimulatedMachine,
) -> None:
    backup, _facts = machine.dump()
    await machine.fixture.do(NEW_MACHINE)
    secrets = {name: machine.host.facts.get(f"acl:{name}") for name in acls(machine)}

    await restore(machine, backup)
    assert {name: machine.host.facts.get(f"acl:{name}") for name in acls(machine)} == secrets
    machine.reboot()
    await restore(machine, backup)
    assert acls(machine) == []


async def test_a_host_that_may_not_publish_any_more_does_not(machine: SimulatedMachine) -> None:
    await machine.fixture.do(FENCE, HOSTS.but(hosts=("take",)))
    backup, _facts = machine.dump()
    await machine.fixture.do(HOSTS)

    await restore(machine, backup)

    assert volume(machine).hosts == ("take",), "as the backup has it"
    host = administrator("a test").but(role="host", subject="take")
    operation = await machine.fixture.service.submit(PUBLISH, caller=host)
    with pytest.raises(Conflict) as caught:
        await machine.fixture.service.wait(operation.id, DEADLINE_S)
    assert caught.value.reason == "ZVOL_NEWER"
    assert acls(machine) == []


async def test_each_volume_keeps_its_own_epoch_when_a_new_machine_is_refused(
    machine: SimulatedMachine,
) -> None:
    """The epochs are counted, then the last change of secrets fails."""
    more = PUBLISH.but(volume="more")
    await machine.fixture.do(FENCE, PUBLISH, CREATE.but(id="more"), more)
    acl = acls(machine)[-1]
    set_secrets = machine.host.lio.set_secrets

    def fail(target: str, initiator: str, *, chap: Chap) -> None:
        if f"{target}/{initiator}" == acl:
            raise CommandFailed("no")
        set_secrets(target, initiator, chap=chap)

    machine.host.lio.set_secrets = fail  # type: ignore[method-assign]
    with pytest.raises(CommandFailed):
        await machine.fixture.do(NEW_MACHINE)
    machine.host.lio.set_secrets = set_secrets  # type: ignore[method-assign]
    await machine.settle()

    with machine.store.read() as txn:
        epochs = {record.id: record.epoch for record in txn.scan(Volume)}
    assert epochs == {"data": 4, "more": 2}
    assert machine.host.zfs.find_epoch(DATASET)[0] == epochs["data"]
    await machine.fixture.do(NEW_MACHINE, PUBLISH, more)


async def test_an_epoch_of_an_operation_that_was_rolled_back_says_so(
    machine: SimulatedMachine,
) -> None:
    """Its store may be a backup from the middle: after a reboot nothing is done again."""
    host, step = machine.host, plans.epoch(volume(machine), 2, "01jd")
    step.do(host)
    assert step.must_finish(host)
    assert step.revert(host) == step.revert(host) == {epoch_fact(DATASET): "2"}
    assert not step.must_finish(host)
    with pytest.raises(Conflict):
        plans.epoch(volume(machine), 2, "01je").check_current(host)
    later = plans.epoch(volume(machine), 3, "01je")
    later.do(host)
    with pytest.raises(Conflict):
        step.revert(host)


async def test_a_rotation_asks_for_a_session_once(machine: SimulatedMachine) -> None:
    done = await machine.fixture.do(RotateSecrets(volume="data"))
    assert [type(action.step).__name__ for action in done.actions] == [
        "NoSession",
        "Epoch",
        "AclSecrets",
    ]


async def test_an_adoption_goes_on_with_a_later_epoch(machine: SimulatedMachine) -> None:
    backup, _facts = machine.dump()
    await machine.fixture.do(FENCE, PUBLISH, FENCE)
    epoch = volume(machine).epoch
    await restore(machine, backup)
    assert volume(machine).epoch < epoch

    service = machine.fixture.service
    await machine.fixture.do(await find_zvol(service.context, DATASET, ""))

    assert volume(machine).epoch >= epoch
    with machine.store.read() as txn:
        assert list(txn.scan(Publication)) == []
    await machine.fixture.do(PUBLISH)
    with machine.store.read() as txn:
        (publication,) = txn.scan(Publication)
    assert publication.epoch > epoch


async def test_every_change_of_access_has_an_epoch_of_its_own(machine: SimulatedMachine) -> None:
    epochs = [volume(machine).epoch]
    for request in (FENCE, PUBLISH, RotateSecrets(volume="data", force=True), FENCE):
        await machine.fixture.do(request)
        epochs.append(volume(machine).epoch)
        assert machine.host.zfs.find_epoch(DATASET)[0] == epochs[-1]
    assert epochs == sorted(set(epochs))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("zfsilo:operation", "another", "another operation made it"),
        ("zfsilo:operation", "", "another operation made it"),
        ("zfsilo:epoch", "1:01jd", "it was published"),
        ("zfsilo:filesystem", "READY:ext4:0", "a filesystem was made on it"),
        ("", "", "it has data"),
    ],
)
def test_a_rollback_keeps_a_zvol_that_was_used(name: str, value: str, reason: str) -> None:
    host = FakeHost(chap=chap)
    step = plans.zvol(VOLUME, "01jd")
    step.do(host)
    if name:
        host.zfs.set_property(VOLUME.dataset, name, value)
    else:
        host.facts.effect(f"content:{VOLUME.uid}", {"type": "ext4"})
    assert reason in step.revert(host)[KEPT]
    assert step.probe(host)


def test_a_rollback_destroys_a_zvol_that_was_never_used() -> None:
    host = FakeHost(chap=chap)
    step = plans.zvol(VOLUME, "01jd")
    step.do(host)
    assert step.revert(host) == {}
    assert not step.probe(host)
    assert step.revert(host) == {}, "a second rollback finds nothing"


def test_a_rollback_restores_only_its_own_value_of_a_property() -> None:
    host = FakeHost(chap=chap)
    plans.zvol(VOLUME, "01jd").do(host)
    (action,) = plans.properties(VOLUME, {"compression": "zstd"})
    action.step.do(host)  # type: ignore[attr-defined]
    host.zfs.set_property(VOLUME.dataset, "compression", "lz4")
    action.step.revert(host)  # type: ignore[attr-defined]
    assert host.zfs.has_property(VOLUME.dataset, "compression", "lz4")

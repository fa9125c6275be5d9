"""Failed rollbacks: shown, refusing changes, retried with back-off, and repaired."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.cases import CONNECT, CREATE, LARGER, PUBLISH
from tests.worker_rig import not_sticky
from zfsilod.model.errors import Busy, CommandFailed
from zfsilod.requests.detach import Disconnect
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.model.records import Operation

START_S = 1_000.0


class BrokenHost:
    """Makes changes of some kinds of facts fail, once or always."""

    def __init__(self, fixture: ServiceFixture) -> None:
        self.kinds: dict[str, int] = {}  # remaining failures by kind of fact
        self.after = 0  # changes before the first failure
        facts = fixture.host.facts
        effect = facts.effect

        def change(name: str, value: Any, **renamed: Any) -> None:
            self.after -= 1
            kind = name.partition(":")[0]
            if self.after < 0 and self.kinds.get(kind, 0):
                self.kinds[kind] -= 1
                raise CommandFailed(f"{kind} cannot be changed now")
            effect(name, value, **renamed)

        facts.effect = change  # type: ignore[method-assign]


def live_operation(fixture: ServiceFixture) -> Operation:
    """Return the operation that has not ended."""
    with fixture.service.context.store.read() as txn:
        (operation,) = txn.live()
    return operation


async def fail_rollback(
    fixture: ServiceFixture, broken: BrokenHost, kind: str = "lun", times: int = 99
) -> None:
    """Make a publish fail after half of its LUN, and its rollback at the same step."""
    await fixture.do(CREATE)
    broken.after, broken.kinds = 6, {kind: times}
    with pytest.raises(CommandFailed):
        await fixture.do(PUBLISH)
    await asyncio.gather(*fixture.launcher.tasks.values())


async def test_a_failed_rollback_is_shown_and_refuses_changes_until_repaired(
    fixture: ServiceFixture,
) -> None:
    broken = BrokenHost(fixture)
    await fail_rollback(fixture, broken)
    operation = live_operation(fixture)
    assert (operation.state, operation.attempts) == ("NEEDS_REPAIR", 1)
    with fixture.service.context.store.read() as txn:
        (said,) = volume_view(txn, "data").conditions
    assert f"zfsiloctl operation repair {operation.id}" in said
    for request in (LARGER, PUBLISH.but(readonly=True)):
        with pytest.raises(Busy) as caught:
            await fixture.do(request)
        assert caught.value.reason == "NEEDS_REPAIR"
    broken.kinds = {}
    await fixture.service.repair(operation.id)
    await asyncio.gather(*fixture.launcher.tasks.values())
    assert fixture.service.operation(operation.id).state == "ROLLED_BACK"
    with fixture.service.context.store.read() as txn:
        assert volume_view(txn, "data").conditions == ()
    await fixture.do(LARGER, PUBLISH)


async def test_a_failed_rollback_is_retried_with_back_off(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = START_S
    monkeypatch.setattr("zfsilod.service.supervisor.time.monotonic", lambda: now)
    broken = BrokenHost(fixture)
    await fail_rollback(fixture, broken)
    supervisor = Supervisor(fixture.service, retention_s=60)
    tried = []
    for second in range(800):
        now = START_S + second
        before = live_operation(fixture).attempts
        await supervisor.recover()
        await asyncio.gather(*fixture.launcher.tasks.values())
        if live_operation(fixture).attempts > before:
            tried.append(second)
    assert tried == [0, 5, 20, 80, 380, 680]
    broken.kinds, now = {}, START_S + 1000
    await supervisor.recover()
    await asyncio.gather(*fixture.launcher.tasks.values())
    with fixture.service.context.store.read() as txn:
        assert list(txn.live()) == []


async def test_a_rollback_that_writes_nothing_is_retried_with_back_off(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker cannot even read its operation, so the record does not say that it failed."""
    now = START_S
    monkeypatch.setattr("zfsilod.service.supervisor.time.monotonic", lambda: now)
    broken = BrokenHost(fixture)
    await fail_rollback(fixture, broken)
    operation = live_operation(fixture)
    with fixture.service.context.store.write() as txn:
        txn.put(operation.but(state="REVERTING"))
    started = []

    async def start(operation: Operation) -> None:
        started.append(now - START_S)

    monkeypatch.setattr(fixture.launcher, "rollback", start)
    supervisor = Supervisor(fixture.service, retention_s=60)
    for second in range(100):
        now = START_S + second
        await supervisor.recover()
    assert started == [0, 5, 20, 80]


@pytest.mark.parametrize("kind", ["backstore", "target", "lun"])
async def test_an_undo_that_fails_once_succeeds_in_the_next_attempt(
    fixture: ServiceFixture, kind: str
) -> None:
    broken = BrokenHost(fixture)
    await fixture.do(CREATE)
    before = fixture.facts
    broken.after, broken.kinds = 7, {"acl": 1, kind: 1}
    with pytest.raises(CommandFailed):
        await fixture.do(PUBLISH)
    await asyncio.gather(*fixture.launcher.tasks.values())
    assert live_operation(fixture).state == "NEEDS_REPAIR"
    await Supervisor(fixture.service, retention_s=60).recover()
    await asyncio.gather(*fixture.launcher.tasks.values())
    assert not_sticky(fixture.facts) == not_sticky(before)


async def test_a_forced_disconnect_abandons_a_failed_rollback(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    broken = BrokenHost(fixture)
    broken.after, broken.kinds = 2, {"session": 1, "node": 99}
    with pytest.raises(CommandFailed):
        await fixture.do(CONNECT)
    await asyncio.gather(*fixture.launcher.tasks.values())
    operation = live_operation(fixture)
    assert operation.state == "NEEDS_REPAIR"
    with pytest.raises(Busy):
        await fixture.do(Disconnect(id="data"))
    await fixture.do(Disconnect(id="data", force=True))
    assert fixture.service.operation(operation.id).state == "ABANDONED"

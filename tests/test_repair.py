"""A rollback that fails: seen, refusing changes, retried with back-off, and healed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.cases import CONNECT, CREATE, LARGER, PUBLISH
from zfsilod.model.errors import Busy, CommandFailed
from zfsilod.requests.detach import Disconnect
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from tests.doubles import House
    from zfsilod.model.records import Operation

GONE = 1_000.0


class Broken:
    """A host on which some facts cannot be changed: `kinds` of them, for ever or once."""

    def __init__(self, zfsilo: House) -> None:
        self.kinds: dict[str, int] = {}  # how often each still fails, by the kind of the fact
        self.after = 0  # changes that still succeed
        facts = zfsilo.host.facts
        effect = facts.effect

        def change(name: str, value: Any, **renamed: str) -> None:
            self.after -= 1
            kind = name.partition(":")[0]
            if self.after < 0 and self.kinds.get(kind, 0):
                self.kinds[kind] -= 1
                raise CommandFailed(f"{kind} cannot be changed now")
            effect(name, value, **renamed)

        facts.effect = change  # type: ignore[method-assign]


def stuck(zfsilo: House) -> Operation:
    """Return the operation that has not ended."""
    with zfsilo.service.context.store.read() as txn:
        (operation,) = txn.live()
    return operation


async def get_stuck(zfsilo: House, broken: Broken, kind: str = "lun", times: int = 99) -> None:
    """Let a publication fail when its LUN is half made, and its rollback there too."""
    await zfsilo.do(CREATE)
    broken.after, broken.kinds = 5, {kind: times}
    with pytest.raises(CommandFailed):
        await zfsilo.do(PUBLISH)
    await asyncio.gather(*zfsilo.launcher.tasks.values())


async def test_it_is_seen_and_refuses_changes_until_it_is_repaired(zfsilo: House) -> None:
    broken = Broken(zfsilo)
    await get_stuck(zfsilo, broken)
    operation = stuck(zfsilo)
    assert (operation.state, operation.attempts) == ("NEEDS_REPAIR", 1)
    with zfsilo.service.context.store.read() as txn:
        (said,) = volume_view(txn, "data").conditions
    assert f"zfsiloctl operation repair {operation.id}" in said
    for request in (LARGER, PUBLISH.but(readonly=True)):
        with pytest.raises(Busy) as caught:
            await zfsilo.do(request)
        assert caught.value.reason == "NEEDS_REPAIR"
    broken.kinds = {}
    await zfsilo.service.repair(operation.id)
    await asyncio.gather(*zfsilo.launcher.tasks.values())
    assert zfsilo.service.operation(operation.id).state == "ROLLED_BACK"
    with zfsilo.service.context.store.read() as txn:
        assert volume_view(txn, "data").conditions == ()
    await zfsilo.do(LARGER, PUBLISH)


async def test_it_is_retried_at_once_and_then_ever_more_seldom(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = GONE
    monkeypatch.setattr("zfsilod.service.supervisor.time.monotonic", lambda: now)
    broken = Broken(zfsilo)
    await get_stuck(zfsilo, broken)
    supervisor = Supervisor(zfsilo.service, retention_s=60)
    tried = []
    for second in range(800):
        now = GONE + second
        before = stuck(zfsilo).attempts
        await supervisor.recover()
        await asyncio.gather(*zfsilo.launcher.tasks.values())
        if stuck(zfsilo).attempts > before:
            tried.append(second)
    assert tried == [0, 5, 20, 80, 380, 680]
    broken.kinds, now = {}, GONE + 1000
    await supervisor.recover()
    await asyncio.gather(*zfsilo.launcher.tasks.values())
    with zfsilo.service.context.store.read() as txn:
        assert list(txn.live()) == []


@pytest.mark.parametrize("kind", ["backstore", "target", "lun"])
async def test_every_undo_that_fails_once_heals(zfsilo: House, kind: str) -> None:
    broken = Broken(zfsilo)
    await zfsilo.do(CREATE)
    before = zfsilo.facts
    broken.after, broken.kinds = 8, {"acl": 1, kind: 1}
    with pytest.raises(CommandFailed):
        await zfsilo.do(PUBLISH)
    await asyncio.gather(*zfsilo.launcher.tasks.values())
    assert stuck(zfsilo).state == "NEEDS_REPAIR"
    await Supervisor(zfsilo.service, retention_s=60).recover()
    await asyncio.gather(*zfsilo.launcher.tasks.values())
    assert zfsilo.facts == before


async def test_a_node_can_be_drained_all_the_same(zfsilo: House) -> None:
    await zfsilo.do(CREATE, PUBLISH)
    broken = Broken(zfsilo)
    broken.after, broken.kinds = 2, {"session": 1, "node": 99}
    with pytest.raises(CommandFailed):
        await zfsilo.do(CONNECT)
    await asyncio.gather(*zfsilo.launcher.tasks.values())
    operation = stuck(zfsilo)
    assert operation.state == "NEEDS_REPAIR"
    with pytest.raises(Busy):
        await zfsilo.do(Disconnect(id="data"))
    await zfsilo.do(Disconnect(id="data", force=True))
    assert zfsilo.service.operation(operation.id).state == "ABANDONED"

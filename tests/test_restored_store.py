"""A store that is older than its pool: a backup that was restored after the pool had moved on."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from tests.crash.cases import CASES, CREATE
from tests.crash.simulated_machine import simulated_machine
from tests.service_fixture import administrator
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.records import Failure
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.crash.simulated_machine import SimulatedMachine
    from zfsilod.storage.transaction import Transaction

FAILURE = Failure(name="CommandFailed", message="zfs failed")
Copy = list[tuple[bytes, bytes]]


@contextmanager
def copied_after_each_write(machine: SimulatedMachine) -> Iterator[list[Copy]]:
    """Collect a copy of the store from before each of its write transactions."""
    copies: list[Copy] = []
    change = Store.change

    @contextmanager
    def copying(store: Store) -> Iterator[Transaction]:
        with machine.store.read() as before:
            copies.append(list(before.items()))
        with change(store) as txn:
            yield txn

    with mock.patch.object(Store, "change", copying):
        yield copies


async def restore(machine: SimulatedMachine, copy: Copy, facts: dict[str, Any]) -> None:
    """Restore a copy of the store over these facts, and let the daemon recover and sync."""
    await machine.load((copy, facts))
    machine.injector.set()
    with contextlib.suppress(ZfsiloError):
        await machine.supervisor.recover()
    await units_ended(machine)
    with contextlib.suppress(ZfsiloError):
        await machine.fixture.service.reconciler.sync_all(caller=administrator("boot"))
    await units_ended(machine)


async def units_ended(machine: SimulatedMachine) -> None:
    """Wait for all units; an operation that needs repair stays as it is."""
    while running := [task for task in machine.units.tasks.values() if not task.done()]:
        await asyncio.gather(*running)


def data_of(facts: dict[str, Any]) -> set[str]:
    """Return the names of all facts that hold data of somebody."""
    return {name for name in facts if name.partition(":")[0] in ("zvol", "cut")}


CREATIONS = ("create", "snapshot", "snapshot-group", "create-from-snapshot", "create-from-volume")


@pytest.mark.parametrize("name", CREATIONS)
async def test_a_store_restored_at_any_point_of_a_creation_destroys_nothing(
    name: str, tmp_path: Path
) -> None:
    case = next(case for case in CASES if case.name == name)
    async with simulated_machine(tmp_path) as machine:
        for request in case.before:
            await machine.fixture.do(request)
        await machine.settle()
        with copied_after_each_write(machine) as copies:
            await machine.carry_out(case.submit)
        facts = machine.host.facts.snapshot()
        facts |= {f"written:{zvol['uid']}": True for zvol in zvols(facts)}
        for number, copy in enumerate(copies):
            await restore(machine, copy, facts)
            lost = data_of(facts) - data_of(machine.host.facts.snapshot())
            assert not lost, f"copy {number} of {len(copies)}"


async def test_the_rollback_of_a_failed_creation_keeps_a_zvol_with_data(tmp_path: Path) -> None:
    async with simulated_machine(tmp_path) as machine:
        await machine.fixture.do(CREATE)
        created = machine.operations()[-1]
        with machine.store.write() as txn:
            txn.drop("volume", "data")
            failed = created.but(state="FAILED", ended_at=0, failure=FAILURE)
            stored = txn.put(failed)
            txn.put_raw("live", stored.id, stored.id.encode())
        zvol = zvols(machine.host.facts.snapshot())[0]
        machine.host.facts.memory[f"written:{zvol['uid']}"] = True
        await machine.supervisor.recover()
        await units_ended(machine)
        ended = machine.operations()[-1]
        assert zvols(machine.host.facts.snapshot())
        assert ended.state == "ROLLED_BACK"
        assert ended.failure is not None
        assert "zvol tank/zfsilo/data is kept: data was written to it" in ended.failure.message


def zvols(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the zvols among facts."""
    return [value for name, value in facts.items() if name.startswith("zvol:")]

"""Upgrade: an older store is migrated when the last worker of the older version has ended."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.fault_injector import Fault
from tests.crash.simulated_machine import SimulatedMachine, simulated_machine
from tests.test_crash import case_named
from zfsilod.engine import locks as locks_module
from zfsilod.engine.migrate import migrate
from zfsilod.model.errors import Busy
from zfsilod.model.record import CLASSES
from zfsilod.model.records import Operation, Volume
from zfsilod.storage.migrations import RENAMED_FIELDS, RENAMED_VALUES, renamed
from zfsilod.storage.store import SCHEMA, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OLDEST = 1  # schema
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print('held'); sys.stdin.read()"
)


def make_old(store: Store) -> None:
    """Give the store the form of the oldest version: old names, no sum of promised bytes."""
    fields: dict[str, dict[str, str]] = {}
    values: dict[tuple[str, str], dict[str, str]] = {}
    for tag, names in RENAMED_FIELDS.items():
        fields[CLASSES[tag].TAG] = {new: old for old, new in names.items()}
    for (tag, old_field), texts in RENAMED_VALUES.items():
        field = RENAMED_FIELDS.get(tag, {}).get(old_field, old_field)
        values[CLASSES[tag].TAG, field] = {new: old for old, new in texts.items()}
    for alias, kind in CLASSES.items():
        if alias != kind.TAG:
            values[kind.TAG, "is"] = {kind.TAG: alias}
    with store.change() as txn:
        txn.rewrite(lambda record: renamed(record, fields, values))
        txn.put_raw("meta", "schema", str(OLDEST).encode())
        txn.drop("meta", "promised")


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[SimulatedMachine]:
    """A machine with a volume."""
    async with simulated_machine(tmp_path) as machine:
        for request in case_named("publish").before:
            await machine.fixture.do(request)
        await machine.settle()
        yield machine


def running(machine: SimulatedMachine) -> Operation:
    """Return the operation that has not ended."""
    (operation,) = machine.live()
    return operation


async def cut_short(machine: SimulatedMachine) -> None:
    """Run an operation whose worker and machine are killed in the middle."""
    machine.injector.set(
        Fault("run", 7, "after", "kill worker"), Fault("rollback", 1, "before", "reboot")
    )
    machine.request(case_named("publish").submit)
    while not machine.dead:
        await machine.woken.wait()
        machine.woken.clear()
    await machine.stop_daemon()
    machine.units.off = False


async def test_an_operation_of_the_old_version_is_rolled_back(
    machine: SimulatedMachine,
) -> None:
    before = machine.state()
    await cut_short(machine)
    make_old(machine.store)
    migrate(machine.store, Path(machine.store.directory) / "op")
    machine.start_daemon()
    await machine.settle()
    epochs = ("record volume data epoch", "fact zvol:tank/zfsilo/data properties zfsilo:epoch")
    now = machine.state()
    assert {n: now[n] for n in now if n not in epochs} == {
        n: before[n] for n in before if n not in epochs
    }
    with machine.store.read() as txn:
        assert txn.schema() == SCHEMA
        assert txn.promised() == sum(volume.capacity_bytes for volume in txn.scan(Volume))


async def test_an_upgrade_waits_for_the_worker_of_the_old_version(
    machine: SimulatedMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cut_short(machine)
    locks = Path(machine.store.directory) / "op"
    locks.mkdir(exist_ok=True)
    lock = locks / f"{running(machine).unit}.lock"
    make_old(machine.store)
    lock.touch()
    monkeypatch.setattr(locks_module, "LOCK_DEADLINE_S", 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match="of an older zfsilo still runs"):
            migrate(machine.store, locks)
        with machine.store.read() as txn:
            assert txn.schema() == OLDEST
        worker.communicate()
    migrate(machine.store, locks)
    with machine.store.read() as txn:
        assert txn.schema() == SCHEMA
    descriptor = os.open(lock, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the upgrade released it
    os.close(descriptor)
    machine.start_daemon()
    await machine.settle()


FIELDS = {"Old": {"name": "title", "is_up": "up"}, "Inner": {"name": "label"}}
VALUES = {
    ("Old", "name"): {"a": "A"},
    ("Old", "modes"): {"x": "X"},
    ("Inner", "label"): {"b": "never: the field had another name"},
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"is": "Other", "name": "a"}, {"is": "Other", "name": "a"}),
        ({"is": "Old", "name": "a", "is_up": True}, {"is": "Old", "title": "A", "up": True}),
        ({"is": "Old", "modes": ["x", "y"]}, {"is": "Old", "modes": ["X", "y"]}),
        ({"is": "Old", "name": ["a", ["a"]]}, {"is": "Old", "title": ["A", ["A"]]}),
        (
            {"is": "Other", "list": [{"is": "Inner", "name": "b"}, ["a", 1, None]]},
            {"is": "Other", "list": [{"is": "Inner", "label": "b"}, ["a", 1, None]]},
        ),
        (
            {"is": "Old", "name": {"is": "Inner", "name": "a"}},
            {"is": "Old", "title": {"is": "Inner", "label": "a"}},
        ),
    ],
)
def test_fields_and_values_are_renamed_at_any_depth(old: object, new: object) -> None:
    assert renamed(old, FIELDS, VALUES) == new


def test_every_tag_and_new_name_of_the_tables_exists() -> None:
    for tag, names in RENAMED_FIELDS.items():
        assert set(names.values()) <= set(CLASSES[tag].FIELDS)
        assert not set(names) & set(CLASSES[tag].FIELDS)
    for tag, field in RENAMED_VALUES:
        assert RENAMED_FIELDS.get(tag, {}).get(field, field) in CLASSES[tag].FIELDS


def test_a_rewrite_leaves_secrets_and_indexes_alone(tmp_path: Path) -> None:
    store = Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
    values = {"secret": b'{"is":"Move"', "claim": b"01jd", "live": b"01jd", "changed": b"01jd"}
    with store.change() as txn:
        for bucket, value in values.items():
            txn.put_raw(bucket, "a", value)
        txn.put_raw("volume", "a", b'{"is":"Old","name":"a"}')
        txn.rewrite(lambda record: renamed(record, FIELDS, VALUES))
        assert txn.get_raw("volume", "a") == b'{"is":"Old","title":"A"}'
        assert {bucket: txn.get_raw(bucket, "a") for bucket in values} == values
    store.close()


def test_a_new_store_needs_no_upgrade(tmp_path: Path) -> None:
    store = Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
    migrate(store, tmp_path / "op")
    store.close()

"""Stores of other versions: an older one is migrated in its time, a newer one refused."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.crash.life import Machine, machine
from tests.crash.saw import Cut
from tests.test_crash import case_named
from zfsilod.model.errors import Busy, FailedPrecondition
from zfsilod.model.record import CLASSES
from zfsilod.model.records import Operation, Volume
from zfsilod.service import upgrade as upgrade_module
from zfsilod.service.upgrade import upgrade
from zfsilod.storage.migrations import RENAMED_FIELDS, RENAMED_VALUES, renamed
from zfsilod.storage.store import SCHEMA, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OLDEST = 1  # schema
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print('held'); sys.stdin.read()"
)


def make_old(store: Store) -> None:
    """Make the store what the oldest version left: old names, and no count of promises."""
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
async def built(tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine with a volume, and an operation of the old version under way."""
    async with machine(tmp_path) as made:
        for request in case_named("publish").before:
            await made.house.do(request)
        await made.settle()
        yield made


def running(built: Machine) -> Operation:
    """Return the operation that has not ended."""
    (found,) = built.live()
    return found


async def cut_short(built: Machine) -> None:
    """Leave an operation behind whose worker and daemon were killed in the middle."""
    built.saw.set(Cut("run", 7, "after", "kill worker"), Cut("rollback", 1, "before", "reboot"))
    built.request(case_named("publish").submit)
    while not built.dead:
        await built.stirred.wait()
        built.stirred.clear()
    await built.bury()
    built.units.off = False


async def test_what_the_old_version_had_begun_the_new_one_takes_back(built: Machine) -> None:
    before = built.state()
    await cut_short(built)
    make_old(built.store)
    upgrade(built.store, built.store.directory / "op")
    built.born()
    await built.settle()
    assert built.state() == before
    with built.store.read() as txn:
        assert txn.schema() == SCHEMA
        assert txn.promised() == sum(each.capacity_bytes for each in txn.scan(Volume))


async def test_it_waits_for_a_worker_of_the_old_version(
    built: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cut_short(built)
    locks = built.store.directory / "op"
    locks.mkdir(exist_ok=True)
    lock = locks / f"{running(built).unit}.lock"
    make_old(built.store)
    lock.touch()
    monkeypatch.setattr(upgrade_module, "LOCK_DEADLINE_S", 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match="of an older version still runs"):
            upgrade(built.store, locks)
        with built.store.read() as txn:
            assert txn.schema() == OLDEST
        worker.communicate()
    upgrade(built.store, locks)
    with built.store.read() as txn:
        assert txn.schema() == SCHEMA
    descriptor = os.open(lock, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was given back
    os.close(descriptor)
    built.born()
    await built.settle()


async def test_a_save_is_refused_when_the_schema_has_changed_meanwhile(built: Machine) -> None:
    with built.store.change() as txn:
        txn.put_raw("meta", "schema", str(SCHEMA + 1).encode())
    with pytest.raises(FailedPrecondition, match=f"schema {SCHEMA + 1}"), built.store.write():
        pass


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


def test_a_newer_store_is_refused_in_one_clear_sentence(tmp_path: Path) -> None:
    store = Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
    with store.change() as txn:
        txn.put_raw("meta", "schema", str(SCHEMA + 1).encode())
    store.close()
    with pytest.raises(FailedPrecondition) as caught:
        Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
    assert caught.value.message == (
        f"the store has schema {SCHEMA + 1}, this zfsilo knows {SCHEMA}: install a version that "
        "is at least as new as the one that wrote it"
    )


def test_a_new_store_needs_no_upgrade(tmp_path: Path) -> None:
    store = Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
    upgrade(store, tmp_path / "op")
    store.close()

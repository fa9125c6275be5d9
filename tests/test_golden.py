"""Golden stores: this version opens, completes, rolls back and shows those of older versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import golden
from tests.crash.simulated_machine import FIRST_BOOT
from tests.ctl.shell import Shell, running
from tests.golden.records import RECORDS
from tests.service_fixture import SETTINGS, LocalServer, ThreadLauncher
from tests.worker_rig import not_sticky
from zfsilod.api.dbus.contract import path_of
from zfsilod.api.dbus.objects import Objects
from zfsilod.ctl.output.volume import show_list, show_volume
from zfsilod.engine.step import HostStep
from zfsilod.engine.worker import work
from zfsilod.host.fake import FakeHost
from zfsilod.model.record import CLASSES, from_plain, to_plain
from zfsilod.model.records import Host as HostRecord
from zfsilod.model.records import Operation, Snapshot, SnapshotGroup
from zfsilod.service.context import ServiceContext
from zfsilod.service.service import Service
from zfsilod.storage.store import SCHEMA, Store
from zfsilod.storage.summary import Summary
from zfsilod.storage.volume_view import volume_views_with_deleted
from zfsilod.wire import convert

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.golden import Golden

BY_NAME = {f"{path.parent.name}/{path.stem}": path for path in golden.PATHS}
FULL = [name for name in BY_NAME if name.endswith("/records")]
STATES = {"RUNNING", "WAITING", "FAILED", "NEEDS_REPAIR", "DONE", "ROLLED_BACK", "ABANDONED"}
LINES = (
    "volume list --deleted",
    "volume show data",
    "volume show here",
    "snapshot list",
    "snapshot show monday",
    "snapshot-group show both",
    "host list",
    "host show other",
    "operation list",
    "operation show 01kd00000000000000000000ae",
    "status",
)


class Restored:
    """A golden store, opened by this version on its simulated host."""

    def __init__(self, kept: Golden, directory: Path) -> None:
        kept.restore(directory)
        self.kept = kept
        self.store = Store.create(
            directory, host="simulated", size_bytes=golden.SIZE_BYTES, durable=False
        )
        self.store.migrate()
        self.host = FakeHost(directory / "facts.json", chap=self.store.chap, key_store=self.store)

    def live(self) -> list[Operation]:
        """Return the operations that have not ended."""
        with self.store.read() as txn:
            return list(txn.live())

    def work(self, way: str) -> None:
        """Do the work of every unit of a live operation."""
        for unit in dict.fromkeys(operation.unit for operation in self.live()):
            assert work(self.store, self.host, unit, way) == []

    def pass_remote(self) -> None:
        """Mark the remote actions that operations wait for as done."""
        with self.store.write() as txn:
            for operation in [op for op in txn.live() if op.state == "WAITING"]:
                action = operation.next_action
                assert action is not None
                index = operation.actions.index(action)
                txn.put(operation.with_status(index, "DONE").but(state="RUNNING"))

    def complete(self) -> None:
        """Complete every live operation that has not failed."""
        while [op for op in self.live() if op.state in ("RUNNING", "WAITING")]:
            self.pass_remote()
            self.work("run")

    def ended(self, operations: list[Operation]) -> list[Operation]:
        """Return the operations in their final form; no claim may be left."""
        with self.store.read() as txn:
            assert list(txn.live()) == []
            now = [txn.get(Operation, operation.id) for operation in operations]
            claims = [txn.claimant(thing) for operation in operations for thing in operation.claims]
        assert claims == [None] * len(claims)
        return [operation for operation in now if operation is not None]


@pytest.fixture(params=BY_NAME)
def restored(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Restored]:
    """Each golden store, in the boot in which it was made."""
    monkeypatch.setenv("ZFSILO_BOOT_ID", FIRST_BOOT)
    opened = Restored(golden.load(BY_NAME[request.param]), tmp_path)
    yield opened
    opened.store.close()


def test_there_are_stores_of_every_schema_before_this_one() -> None:
    schemas = {path.parent.name for path in golden.PATHS}
    assert {f"schema-{number}" for number in range(2, SCHEMA)} <= schemas, (
        "generate them with the version of that schema: python -m tests.golden.make"
    )


def test_the_generator_writes_a_record_of_every_class() -> None:
    made = {value["is"] for record in RECORDS for value in golden.records_in(to_plain(record))}
    never_alone = {"Listed", "ListedShot"}  # in requests only, as part of a fingerprint
    assert made == {kind.TAG for kind in CLASSES.values()} - never_alone


def test_no_plain_secret_is_in_the_files() -> None:
    assert [path.name for path in golden.PATHS if "zfsilo-chap-" in path.read_text()] == []


def test_schema_2_has_every_state_mark_kind_and_step() -> None:
    paths = [path for path in golden.PATHS if path.parent.name == "schema-2"]
    values = [value for path in paths for value in golden.records_in(golden.plain_records(path))]
    operations = [value for value in values if value["is"] == "Operation"]
    moves = [value for value in values if value["is"] == "Move"]
    assert {operation["state"] for operation in operations} == STATES
    assert {move["mark"] for move in moves} == {"todo", "kept", "begun", "done", "undone"}
    assert len({operation["kind"] for operation in operations}) == 30
    assert len({move["step"]["is"] for move in moves}) == 37


def test_every_record_reads_back_and_is_written_the_same(restored: Restored) -> None:
    with restored.store.read() as txn:
        assert txn.schema() == SCHEMA
        count = 0
        for key, raw in restored.kept.pairs:
            bucket, _slash, name = key.partition("/")
            if raw.startswith(b"{"):
                stored = txn.get_raw(bucket, name)
                assert stored is not None
                record = from_plain(json.loads(stored))
                written = json.dumps(to_plain(record), separators=golden.COMPACT).encode()
                assert from_plain(json.loads(written)) == record
                assert written == stored or restored.kept.schema < SCHEMA  # tags may be aliases
                count += 1
    assert count


def known(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts without what the golden stores are older than: the portal of a session."""
    return {
        name: {key: part for key, part in value.items() if key != "portal"}
        if name.startswith("session:")
        else value
        for name, value in facts.items()
    }


def test_live_operations_are_completed(restored: Restored) -> None:
    before = restored.live()
    failed = {op.id for op in before if op.state in ("FAILED", "NEEDS_REPAIR")}
    restored.complete()
    if failed:
        restored.work("rollback")
    for operation in restored.ended(before):
        assert operation.state == ("ROLLED_BACK" if operation.id in failed else "DONE")
        for action in operation.actions if restored.kept.done is None else ():
            if isinstance(action.step, HostStep) and action.up:
                assert action.step.probe(restored.host)
    if restored.kept.done is not None and not failed:
        assert known(restored.host.facts.snapshot()) == restored.kept.done


def test_live_operations_are_rolled_back(restored: Restored) -> None:
    before = restored.live()
    restored.work("rollback")
    states = {operation.state for operation in restored.ended(before)}
    assert states <= {"ROLLED_BACK", "DONE"}  # done if a final action had started
    now, kept = restored.host.facts.snapshot(), restored.kept
    if states == {"ROLLED_BACK"} and kept.before is not None:
        assert not_sticky(known(now)) == not_sticky(kept.before)
    if states == {"DONE"} and kept.done is not None:
        assert known(now) == kept.done


def test_records_are_shown_on_grpc_and_by_zfsiloctl(
    restored: Restored, capsys: pytest.CaptureFixture[str]
) -> None:
    with restored.store.read() as txn:
        volumes = [convert.volume(view) for view in volume_views_with_deleted(txn)]
        for record in txn.scan(Operation):
            shown = convert.operation(record)
            assert [action.step for action in shown.actions] == [
                action.description for action in record.actions
            ]
        hosts = [convert.host(record) for record in txn.scan(HostRecord)]
        snapshots = [convert.snapshot(record, operation="") for record in txn.scan(Snapshot)]
        for group in txn.scan(SnapshotGroup):
            assert convert.snapshot_group(group, snapshots).snapshots
        summary = Summary(txn)
    assert summary.hosts == len(hosts)
    show_list(volumes, deleted=True)
    for volume in volumes:
        show_volume(volume)
    assert all(volume.id in capsys.readouterr().out for volume in volumes[:1])


async def test_records_are_shown_on_the_bus(restored: Restored) -> None:
    launcher = ThreadLauncher(restored.store, restored.host)
    context = ServiceContext(
        restored.store, restored.host, LocalServer(), SETTINGS, boot_id=FIRST_BOOT
    )
    service = Service(context, launcher)
    objects = Objects(service, "1.0")
    with restored.store.read() as txn:
        paths = [path_of("operation", record.id) for record in txn.scan(Operation)]
    for shown in [*objects.managed(), *map(objects.need, paths)]:
        assert shown.all()["Id"].value
    await service.close()


@pytest.mark.parametrize("name", FULL)
def test_zfsiloctl_shows_records_of_every_class(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Restored(golden.load(BY_NAME[name]), tmp_path).store.close()
    with running(tmp_path) as daemon:
        for variable, value in daemon.environment.items():
            monkeypatch.setenv(variable, value)
        shell = Shell(daemon, capsys)
        for line in LINES:
            assert shell.ok(line)
        assert "backup" in shell.apart("token list").out

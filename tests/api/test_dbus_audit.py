"""The audit of D-Bus: a record of every change, also of one that submits no operation."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from dbus_next.signature import SignatureTree

from tests.api.dbus_fixture import DATA, BusFixture, create, options
from zfsilod.api.dbus import methods
from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    NAME,
    OPERATION,
    REPLICATION_POLICY,
    ROOT,
    SNAPSHOT,
    SNAPSHOT_POLICY,
    VOLUME,
    interfaces,
    path_of,
)
from zfsilod.api.dbus.mutations import MUTATIONS
from zfsilod.security.authorization import READ

if TYPE_CHECKING:
    from collections.abc import Callable

    Records = list[dict[str, str]]

pytestmark = pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="needs dbus-daemon")
PATHS = {
    MANAGER: ROOT,
    VOLUME: DATA,
    HOST: path_of("host", "take"),
    SNAPSHOT: path_of("snapshot", "s"),
    SNAPSHOT_POLICY: path_of("policy", "nightly"),
    REPLICATION_POLICY: path_of("replication", "hourly"),
    OPERATION: path_of("operation", "0" * 26),
}
VALUES: dict[str, Any] = {
    "s": "nothing",
    "t": 1,
    "b": False,
    "as": [],
    "ao": [],
    "a{sv}": {},
    "a{st}": {},
    "o": DATA,
    "a{ss}": {},
    "u": 1,
}


@pytest.fixture
def records(fixture: BusFixture) -> Records:
    records: Records = []
    fixture.service.audit.write = lambda _sentence, fields: records.append(fields)
    return records


def values(signature: str) -> list[Any]:
    """Return a value of each type of a signature."""
    types = [one.signature for one in SignatureTree(signature).types]
    return [VALUES.get(one, [] if one[0] == "a" else None) for one in types]


async def test_every_change_without_an_operation_is_recorded(
    fixture: BusFixture, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await fixture.client()

    def returning(body: list[Any]) -> Callable[..., Any]:
        async def answer(*_arguments: Any, **_named: Any) -> list[Any]:
            return body

        return answer

    recorded = []
    for interface in PATHS:
        for method in interfaces()[interface].methods.values():
            name = f"{interface}.{method.name}"
            if name in MUTATIONS:
                continue  # its operation is recorded when it ends
            table = methods.RUNS if name in methods.RUNS else methods.QUERIES
            monkeypatch.setitem(table, name, returning(values(method.output)))
            records.clear()
            call = (PATHS[interface], interface, method.name, method.input)
            await client.call(*call, *values(method.input))
            if method.action == READ:
                assert records == [], name
                continue
            (record,) = records
            assert record["ZFSILO_CALLER"] == f"uid {os.getuid()} (dbus)"
            assert record["ZFSILO_ACTION"] == method.name
            assert record["ZFSILO_SUBJECT"] == PATHS[interface]
            assert record["ZFSILO_OUTCOME"] == "DONE"
            records.clear()
            *arguments, _options = values(method.input)
            await client.call(*call, *arguments, options(validate_only=("b", True)))
            assert records == [], f"a dry run of {name}"
            recorded.append(name.removeprefix(f"{NAME}."))
    assert recorded == [
        "Manager.BindMachine",
        "SnapshotPolicy.Run",
        "ReplicationPolicy.Run",
        "Operation.Cancel",
        "Operation.Repair",
        "Operation.Abandon",
    ]


async def test_a_change_with_an_operation_is_recorded_once(
    fixture: BusFixture, records: Records
) -> None:
    await create(fixture)
    assert [record["ZFSILO_ACTION"] for record in records] == ["create"]

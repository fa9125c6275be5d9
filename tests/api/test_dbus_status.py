"""The D-Bus methods of overviews: GetStatus, Probe, and ListOperations since a time."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tests.api.dbus_fixture import DATA, GIB, create, options
from zfsilod.api.dbus.contract import MANAGER, ROOT, VOLUME
from zfsilod.model.ulid import first_ulid, new_ulid

if TYPE_CHECKING:
    from tests.api.dbus_fixture import BusFixture

pytestmark = pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="needs dbus-daemon")

ZVOL = "zvol:tank/zfsilo/data"


async def test_status_of_a_healthy_host(fixture: BusFixture) -> None:
    client = await fixture.client()
    await create(fixture)
    await client.done(DATA, VOLUME, "Publish", "sa{sv}", "take", {})
    root, figures, volumes, attention = await client.call(ROOT, MANAGER, "GetStatus")
    assert root == "tank/zfsilo"
    assert figures["publications"] == figures["hosts"] == 1
    assert figures["promised_bytes"] == GIB
    available, total = await client.call(ROOT, MANAGER, "GetCapacity", "s", "")
    assert (figures["available_bytes"], figures["total_bytes"]) == (available, total)
    assert volumes == {"PUBLISHED": 1}
    assert attention == []


async def test_status_names_a_lost_volume(fixture: BusFixture) -> None:
    client = await fixture.client()
    await create(fixture)
    fixture.host.facts.effect(ZVOL, None)
    attention = (await client.call(ROOT, MANAGER, "GetStatus"))[3]
    ((subject, sentence, command),) = attention
    assert subject == "volumes/data"
    assert sentence.startswith("zvol tank/zfsilo/data of volume data is missing")
    assert command == "zfsiloctl volume show data"
    assert await client.get(DATA, "Conditions") == [sentence]


async def test_probe_lists_facts_and_marks_the_missing(fixture: BusFixture) -> None:
    client = await fixture.client()
    await create(fixture)
    await client.done(DATA, VOLUME, "Publish", "sa{sv}", "take", {})
    (facts,) = await client.call(DATA, VOLUME, "Probe")
    assert {section for section, *_rest in facts} == {"zvol", "export", "access"}
    assert {(wanted, truth) for _section, _text, wanted, truth, _problem in facts} == {
        (True, "PRESENT")
    }
    (acl,) = (name for name in fixture.host.facts.snapshot() if name.startswith("acl:"))
    fixture.host.facts.effect(acl, None)
    (facts,) = await client.call(DATA, VOLUME, "Probe")
    absent = [fact[:4] for fact in facts if fact[3] != "PRESENT"]
    initiator = acl.rpartition("/")[2]
    assert ["access", f"target has an ACL of {initiator}", True, "ABSENT"] in absent


async def test_operations_since_a_time(fixture: BusFixture) -> None:
    client = await fixture.client()
    await create(fixture)
    soon = int(time.time()) + 3600
    for since, count in ((0, 1), (soon - 7200, 1), (soon, 0), (2**64 - 1, 0)):
        chosen = options(since=("t", since), subject=("s", "volumes/data"))
        rows = (await client.call(ROOT, MANAGER, "ListOperations", "a{sv}", chosen))[0]
        assert len(rows) == count, since


def test_the_lowest_ulid_of_a_moment() -> None:
    now = int(time.time())
    assert first_ulid(now) <= new_ulid() < first_ulid(now + 10)
    assert len(first_ulid(2**64)) == len(new_ulid())

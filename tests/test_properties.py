"""The properties that a volume may have, and the space that it needs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import SETTINGS, ServiceFixture
from zfsilod.host.fake import SIMULATED_BYTES
from zfsilod.model.errors import InvalidArgument, ResourceExhausted
from zfsilod.model.pool_space import PoolSpace, largest_volume, nearly_full
from zfsilod.model.zfs_properties import CHOICES, ENCRYPTION, check_properties
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.supervisor import Supervisor

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs

GIB = 1 << 30
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
LARGER = UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB)


@pytest.mark.parametrize(
    "pair",
    [
        ("compression", "zstd-19"),
        ("compression", "zstd-fast-100"),
        ("compression", "gzip-9"),
        ("sync", "always"),
        ("logbias", "throughput"),
        ("primarycache", "metadata"),
        ("secondarycache", "none"),
        ("dedup", "sha256,verify"),
        ("checksum", "blake3"),
        ("copies", "2"),
        ("redundant_metadata", "most"),
    ],
)
def test_what_may_be_set(pair: tuple[str, str]) -> None:
    assert check_properties((pair,), new=True) == (pair,)
    assert check_properties((pair,), new=False) == (pair,)


@pytest.mark.parametrize(
    "pair",
    [
        ("compression", "best"),
        ("compression", "zstd-20x"),
        ("compression", "zstd\n"),
        ("sync", "sometimes"),
        ("checksum", "off"),
        ("copies", "4"),
        ("volsize", "1G"),
        ("readonly", "on"),
        ("refreservation", "1G"),
        ("snapdev", "visible"),
        ("mountpoint", "/"),
        ("quota", "1G"),
        ("snapshot_limit", "1"),
        ("zfsilo:uid", "x"),
        ("", ""),
        ("sync", ""),
        ("a" * 200, "x"),
        ("encryption", "on"),
        ("keylocation", "file:///etc/shadow"),
    ],
)
def test_what_is_refused_by_name(pair: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_properties((pair,), new=True)
    assert refused.value.facts["property"] == pair[0][:80]
    assert len(refused.value.message) < 500


def test_what_is_for_the_creation_only() -> None:
    inherit: Pairs = (("sync", ""),)
    assert check_properties(inherit, new=False) == inherit
    with pytest.raises(InvalidArgument, match="cannot be changed"):
        check_properties((("volblocksize", "8k"),), new=False)
    assert not {*ENCRYPTION, "volblocksize"} & set(CHOICES)


async def test_what_is_written_is_safe_unless_the_caller_wants_it_otherwise(
    fixture: ServiceFixture,
) -> None:
    def sync() -> str:
        zvol: Any = fixture.facts["zvol:tank/zfsilo/data"]
        return str(zvol["properties"]["sync"])

    await fixture.do(CREATE)
    assert sync() == "always", "a client that outlives a power cut of the server loses nothing"
    change = UpdateVolume(id="data", mask=("properties",), properties=(("sync", "standard"),))
    await fixture.do(change)
    assert sync() == "standard"
    await fixture.do(change.but(properties=(("sync", ""),)))
    assert sync() == "always"


async def test_nothing_new_below_the_reserve(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(CREATE, CREATE.but(id="thick", thin=False))
    left = int(SIMULATED_BYTES * SETTINGS.reserve)
    monkeypatch.setattr(fixture.host.zfs, "capacity", lambda _root: (left, SIMULATED_BYTES))
    for request in (CREATE.but(id="more"), CREATE.but(id="more", thin=False), LARGER):
        with pytest.raises(ResourceExhausted, match="reserve of 5%") as full:
            await fixture.do(request)
        assert full.value.reason == "POOL_FULL"
    await fixture.do(CREATE)  # already so
    await fixture.do(LARGER.but(capacity_bytes=GIB))  # as large as it is
    left += 1 << 20
    monkeypatch.setattr(fixture.host.zfs, "capacity", lambda _root: (left, SIMULATED_BYTES))
    await fixture.do(CREATE.but(id="more"))
    with pytest.raises(ResourceExhausted):
        await fixture.do(CREATE.but(id="most", thin=False))


async def test_it_warns_first_and_once(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(fixture.service, retention_s=0)
    monkeypatch.setattr("zfsilod.service.supervisor.SPACE_S", 0)
    caplog.set_level(logging.WARNING, "zfsilod.service.supervisor")
    for share in (0.5, 0.08, 0.07, 0.5):
        answer = (int(SIMULATED_BYTES * share), SIMULATED_BYTES)
        monkeypatch.setattr(fixture.host.zfs, "capacity", lambda _root, answer=answer: answer)
        await supervisor.check_space()
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert "8% of its space left" in said[0]
    assert "again" in said[1]


def test_the_room_for_a_volume() -> None:
    room = PoolSpace(available_bytes=60, total_bytes=100)
    assert largest_volume(room, SETTINGS, 150, thin=False) == 55
    assert largest_volume(room, SETTINGS, 150, thin=True) == 50  # twice the pool may be promised
    assert largest_volume(room, SETTINGS, 250, thin=True) == 0
    full = PoolSpace(available_bytes=5, total_bytes=100)
    assert [largest_volume(full, SETTINGS, 0, thin=thin) for thin in (False, True)] == [0, 0]
    assert nearly_full(room, SETTINGS) == ""
    assert nearly_full(full, SETTINGS)
    assert nearly_full(PoolSpace(available_bytes=0, total_bytes=0), SETTINGS)

"""A power cut within `zfs create`: the zvol that it leaves without marks is rolled back."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.simulated_machine import simulated_machine
from tests.worker_rig import Killed
from zfsilod.host.half_made import is_half_made
from zfsilod.host.zfs_output import table
from zfsilod.model.ulid import first_ulid, moment_of, new_ulid
from zfsilod.requests.snapshots import CreateSnapshot
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.simulated_machine import SimulatedMachine
    from zfsilod.model.record import Pairs

DATASET = "tank/zfsilo/more"
BEGAN_S = 1_764_559_700
PLANNED = (("volsize", "67108864"), ("volblocksize", "16384"))
CREATE = CreateVolume(id="more", capacity_bytes=64 << 20)
# `zfs get -Hp all` of ZFS 2.3.9 after such a power cut in the lab; those left out do not matter.
LEFT = """
type volume -
creation 1764559703 -
volsize 67108864 local
volblocksize 16384 default
logicalused 28672 -
logicalreferenced 28672 -
snapdev hidden local
sync standard default
zfsilo:owner 1e811fb6ded946d6ac61d006359ac388:3:give inherited from tank/zfsilo
"""


def judged(
    changed: dict[str, str] | None = None, planned: Pairs = PLANNED, began_s: int = BEGAN_S
) -> bool:
    """Judge the zvol with other values, given as `value source`."""
    rows = "".join(
        "\t".join([DATASET, *line.split(" ", 2)]) + "\n" for line in LEFT.strip().splitlines()
    )
    properties = table(rows)[DATASET]
    for name, text in (changed or {}).items():
        value, _space, source = text.partition(" ")
        properties[name] = (value, source or "-")
    return is_half_made(properties, first_ulid(began_s), planned)


def test_what_a_power_cut_left_is_recognised() -> None:
    assert judged()
    origin = "tank/zfsilo/data@zfsilo-1"
    clone = {"origin": origin, "logicalused": "4096", "logicalreferenced": "900000"}
    assert judged(clone, (("origin", origin),))


@pytest.mark.parametrize(
    "changed",
    [
        {"type": "filesystem"},
        {"volsize": "67108865"},
        {"volblocksize": "8192"},
        {"logicalreferenced": "36864"},
        {"creation": str(BEGAN_S - 1)},  # before the operation
        {"origin": "tank/zfsilo/data@mine", "logicalused": "900000"},
        {"zfsilo:uid": "1234 local"},
        {"com.example:note": "mine local"},
        {"com.example:note": "mine received"},
    ],
)
def test_anything_else_is_not(changed: dict[str, str]) -> None:
    assert not judged(changed)


def test_what_was_made_since_the_boot_is_not() -> None:
    now = int(time.time())
    assert not judged({"creation": str(now)}, began_s=now - 10)


def test_the_time_of_a_ulid() -> None:
    assert moment_of(first_ulid(BEGAN_S)) == BEGAN_S * 1000
    assert abs(moment_of(new_ulid()) / 1000 - time.time()) < 60
    with pytest.raises(ValueError, match="is no ULID"):
        moment_of("01jd")


def cut_power(machine: SimulatedMachine, monkeypatch: pytest.MonkeyPatch, *, ours: bool) -> None:
    """Let the next creation be stopped by a power cut, with a zvol that has no marks."""

    def stop(dataset: str, planned: dict[str, str], marks: Pairs) -> None:
        operation = dict(marks)["zfsilo:operation"] if ours else ""
        half_made: dict[str, Any] = {"uid": "", "guid": "9", "size": 64 << 20, "thin": True}
        half_made["properties"] = {"volblocksize": "16384"}
        machine.host.facts.effect(
            f"zvol:{dataset}", half_made | {"half_made": [operation, planned]}
        )
        monkeypatch.undo()
        machine.injector.on_kill("reboot")
        raise Killed

    def create(dataset: str, *, marks: Pairs, **_settings: Any) -> None:
        stop(dataset, dict(PLANNED), marks)

    def clone(
        dataset: str, *, marks: Pairs, snapshot_ref: Any, snapshot_uid: str, **_: Any
    ) -> None:
        stop(dataset, {"origin": f"{snapshot_ref.dataset}@zfsilo-{snapshot_uid}"}, marks)

    monkeypatch.setattr(machine.host.zfs, "create_zvol", create)
    monkeypatch.setattr(machine.host.snapshots, "clone", clone)


@pytest.mark.parametrize("source", ["", "snapshot", "volume"])
async def test_it_is_rolled_back_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    async with simulated_machine(tmp_path) as machine:
        await machine.fixture.do(CREATE.but(id="data"), CreateSnapshot(id="s", volume="data"))
        create = CREATE
        if source == "snapshot":
            create = CREATE.but(source_snapshot="s")
        elif source == "volume":
            create = CREATE.but(source_volume="data")
        before = machine.state()
        cut_power(machine, monkeypatch, ours=True)
        await machine.carry_out(lambda fixture: fixture.do(create))
        assert machine.operations()[-1].state == "ROLLED_BACK"
        assert machine.state() == before
        await machine.fixture.do(create)


async def test_a_zvol_of_somebody_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_machine(tmp_path) as machine:
        cut_power(machine, monkeypatch, ours=False)
        machine.request(lambda fixture: fixture.do(CREATE))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await machine.settle()
        assert machine.host.facts.get(f"zvol:{DATASET}") is not None
        [operation] = machine.live()
        assert operation.failure is not None
        assert operation.failure.reason == "NOT_OURS"

"""The benches themselves: rounds, closing lines, scripts, and what they read on the machines."""

from __future__ import annotations

import subprocess
import zlib
from base64 import b64decode
from typing import TYPE_CHECKING

import pytest

from tests.bench import data_path, guest, inside, nvme_script, part, settings
from tests.bench.lifecycle import KINDS, PHASES
from tests.bench.rounds import rounds
from tests.bench.scripts import SCRIPTS, script
from tests.bench.table import Figure, at_most, closing, within
from tests.service_fixture import STORE_BYTES, service_fixture
from zfsilod.model.records import Publication, Volume
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

NQN, HOST = "nqn.2024-01.lab.give:one", "nqn.2024-01.lab.take:one"


class ShareClock:
    """A clock that stands still but for `advance`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestTime:
    """No bench takes much more than its share, and each measures at least once."""

    @pytest.mark.parametrize(("each_s", "done"), [(1, 5), (9, 2), (11, 1), (100, 1)])
    def test_rounds_end_before_the_share_of_the_time(self, each_s: int, done: int) -> None:
        clock = ShareClock()
        taken = []
        for number in rounds(5, 20, clock):
            taken.append(number)
            clock.now += each_s
        assert taken == list(range(done))

    def test_a_bench_that_fails_takes_no_other_with_it(self) -> None:
        assert part.run("no_such_bench", 60) == ([], "failed with exit code 1")

    def test_a_bench_is_stopped_when_the_time_is_over(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(part, "STOP_S", 0)
        figures, why = part.run("recovery", 0.01)
        assert figures == []
        assert "time of all benches" in why

    def test_none_is_started_without_time(self) -> None:
        assert part.run("recovery", 0) == ([], "no time was left")

    def test_the_last_lines_say_what_falls_short(self) -> None:
        figures = [
            at_most("fast", 1, 2, " s"),
            at_most("slow", 3, 2, " s"),
            within("apart", 0.9, 0.03),
            Figure("no target", "5 s"),
        ]
        text = closing(figures, {"csi": "", "recovery": "failed"}, 1300, 1200, "load 9")
        assert "2 of 3 figures fall short" in text
        assert "  slow: 3.00 s; target: at most 2 s" in text
        assert "  apart: 0.90 times; target: 0.97 to 1.03 times" in text
        assert "fast" not in text
        assert "no target" not in text
        assert "  recovery: failed" in text
        assert "  csi:" not in text
        assert "21.7 minutes; target: less than 20: MISSED; load 9 before" in text


class TestScripts:
    """The shell scripts beside which zfsilo is measured."""

    @pytest.mark.parametrize("kind", SCRIPTS)
    @pytest.mark.parametrize(("machine", "requests"), PHASES)
    def test_each_is_a_script(self, kind: str, machine: str, requests: tuple[str, ...]) -> None:
        text = script(kind, machine, requests)
        subprocess.run(["bash", "-n", "-c", text], check=True)
        functions = {line.partition("(")[0] for line in text.splitlines() if line.endswith("() {")}
        called = {line.partition(" ")[2] for line in text.splitlines() if "report " in line}
        assert called <= functions

    def test_each_kind_of_life_has_one(self) -> None:
        assert {kind for kind, how in KINDS.items() if not how.transport} == set(SCRIPTS)
        assert {bare.script for bare in data_path.BARE.values()} <= set(SCRIPTS)

    def test_its_keys_are_keys_of_dh_hmac_chap(self) -> None:
        _name, kind, text, _end = nvme_script.key(1).split(":")
        raw = b64decode(text)
        assert (kind, len(raw)) == ("01", 36)
        assert raw[32:] == zlib.crc32(raw[:32]).to_bytes(4, "little")


class TestSettings:
    """The settings of two targets are compared."""

    def test_names_may_differ_and_settings_may_not(self) -> None:
        ours = {"zvol/guid": "1", "zvol/sync": "always", "disk/queue/nr_requests": "128"}
        bare = {"zvol/guid": "2", "zvol/sync": "standard", "disk/queue/nr_requests": "128"}
        assert settings.identities(ours, bare) == ["zvol/guid"]
        assert settings.differences(ours, bare) == ["zvol/sync: 'always', bare 'standard'"]
        assert settings.differences(ours, ours | {"disk/ro": "1"}) == ["disk/ro: 'none', bare '1'"]

    def test_neighbours_are_compared(self) -> None:
        ratios, same = data_path.ratios_of([10, 20, 40, 30, 1, 1, 1, 1])
        assert ratios == [0.5, 0.75, 1, 1]
        assert same == [2, 3, 1, 1]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configfs and a sysfs with one subsystem and its controller."""
    configfs, classes = tmp_path / "nvmet", tmp_path / "class"
    monkeypatch.setattr(guest, "NVMET", configfs)
    monkeypatch.setattr(guest, "CLASS", classes)
    monkeypatch.setattr(guest, "LIVE", {"nvme": (f"{classes}/nvme", "state", "live")})
    for name, text in {
        f"nvmet/subsystems/{NQN}/attr_model": "Linux",
        f"nvmet/subsystems/{NQN}/namespaces/1/enable": "1",
        f"nvmet/hosts/{HOST}/dhchap_key": "DHHC-1:01:secret:",
        f"nvmet/hosts/{HOST}/dhchap_hash": "hmac(sha256)",
        "nvmet/ports/1/addr_trsvcid": "4420",
        "class/nvme-subsystem/nvme-subsys3/subsysnqn": NQN,
        "class/nvme-subsystem/nvme-subsys3/nvme3n1/size": "8",
        "class/nvme-subsystem/nvme-subsys3/nvme3c5n1/size": "8",
        "class/nvme/nvme5/state": "live",
        "class/nvme/nvme5/subsysnqn": NQN,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    for link, target in {
        f"subsystems/{NQN}/allowed_hosts/{HOST}": f"hosts/{HOST}",
        f"ports/1/subsystems/{NQN}": f"subsystems/{NQN}",
    }.items():
        (configfs / link).parent.mkdir()
        (configfs / link).symlink_to(configfs / target)
    return tmp_path


class TestGuest:
    """What the program without libraries reads."""

    def test_an_export_has_namespace_host_and_port(self, kernel: Path) -> None:
        assert guest.exports("nvme") == 1
        enable = kernel / f"nvmet/subsystems/{NQN}/namespaces/1/enable"
        enable.write_text("0\n")
        assert guest.exports("nvme") == 0
        enable.write_text("1\n")
        (kernel / f"nvmet/ports/1/subsystems/{NQN}").unlink()
        assert guest.exports("nvme") == 0

    def test_a_controller_counts_when_it_is_live(self, kernel: Path) -> None:
        assert guest.live("nvme") == 1
        (kernel / "class/nvme/nvme5/state").write_text("connecting\n")
        assert guest.live("nvme") == 0

    def test_the_disk_is_not_its_path(self, kernel: Path) -> None:
        assert guest.disks("nvme") == {NQN: "nvme3n1"}

    def test_settings_are_read_without_secrets(self, kernel: Path) -> None:
        read = guest.served(NQN)
        assert read["host/dhchap_hash"] == "hmac(sha256)"
        assert read["port/addr_trsvcid"] == "4420"
        assert read["namespace/enable"] == "1"
        assert not any("secret" in value for value in read.values())


async def test_volumes_are_copied_with_their_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies have marks, names and secrets as if requests had made them."""
    async with service_fixture(tmp_path / "state") as fixture:
        await fixture.do(CreateVolume(id="v000", capacity_bytes=1 << 20, hosts=("take",)))
        await fixture.do(Publish(volume="v000", host="take"))
        directory = fixture.service.context.store.directory
    calls: list[tuple[str, ...]] = []
    store = Store(directory, size_bytes=STORE_BYTES)
    with store.read() as txn:
        first = txn.get(Volume, "v000")
        assert first is not None
        chap = store.chap(txn.get(Publication, "v000/take").secret)  # type: ignore[union-attr]
    store.close()

    def zfs(*words: str) -> str:
        calls.append(words)
        return f"zfsilo:uid\t{first.uid}\nvolsize\t1M\n" if "all" in words else "123\n"

    monkeypatch.setattr(inside, "zfs", zfs)
    monkeypatch.setattr(inside, "STATE", directory)
    inside.copy(3)
    store = Store(directory, size_bytes=STORE_BYTES)
    with store.read() as txn:
        copied, published = txn.get(Volume, "v002"), txn.get(Publication, "v002/take")
    assert copied is not None
    assert published is not None
    assert (copied.uid, copied.guid) == (f"{2:032x}", "123")
    assert (copied.target, copied.backstore) == (
        first.target.replace(first.uid, copied.uid),
        first.backstore.replace(first.uid, copied.uid),
    )
    assert copied.target != first.target
    assert store.chap(published.secret).password == chap.password
    store.close()
    [create] = [words for words in calls if words[0] == "create" and words[-1] == copied.dataset]
    assert f"zfsilo:uid={copied.uid}" in create
    assert not any(word.startswith("volsize") for word in create)

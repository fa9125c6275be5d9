"""Metrics: their values, hosts that do not answer, and the names in alerts and dashboard."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path

import pytest
from zfsilo.v1.service_pb2 import GetStatusRequest

from tests.api.running import GIB, front_of
from tests.examples import ATTACHMENT, TAKE
from tests.scraping import scraped
from tests.service_fixture import administrator
from zfsilod.host.counters import Counters
from zfsilod.model.policies import PolicyOutcome, ReplicationOutcome
from zfsilod.model.records import Attachment, Condition, ReplicaOf, Volume
from zfsilod.model.replica import Replication
from zfsilod.requests.connect import Connect
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.storage.summary import Summary

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"\bzfsilo_[a-z_]+")


async def ask(path: Path, head: bytes = b"GET /metrics HTTP/1.1\r\n\r\n") -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(head)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def test_what_happens_is_counted(tmp_path: Path) -> None:
    async with scraped(tmp_path) as (front, _metrics, path):
        publish = Publish(volume="data", host="take")
        await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB), publish)
        text = await ask(path)
    assert 'zfsilo_operations_total{kind="create",outcome="done"} 1.0' in text
    assert 'zfsilo_operation_seconds_count{kind="publish"} 1.0' in text
    assert 'zfsilo_volumes{state="published"} 1.0' in text
    assert 'zfsilo_volume_size_bytes{volume="data"} 1.073741824e+09' in text
    assert "zfsilo_root_available_bytes" in text
    assert "zfsilo_volume_series_omitted 0.0" in text


async def test_orphans_are_counted_by_kind(tmp_path: Path) -> None:
    async with scraped(tmp_path) as (front, metrics, path):
        await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
        front.write(lambda txn: txn.drop(Volume.bucket(), "data"))
        await metrics.count_orphans()
        text = await ask(path)
    assert 'zfsilo_orphans{kind="zvol"} 1.0' in text
    assert 'zfsilo_orphans{kind="session"} 0.0' in text


async def test_many_volumes_have_sums_only(tmp_path: Path) -> None:
    async with scraped(tmp_path, most=0) as (front, _metrics, path):
        await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
        text = await ask(path)
    assert "zfsilo_volume_series_omitted 1.0" in text
    assert 'volume="data"' not in text
    assert "zfsilo_volumes_size_bytes 1.073741824e+09" in text


async def test_a_pool_that_hangs_stops_no_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thawed = threading.Event()

    def hang(_root: str) -> tuple[int, int]:
        thawed.wait(30)
        return 1, 2

    async with scraped(tmp_path) as (front, _metrics, path):
        monkeypatch.setattr(front.service.context.machine.zfs, "capacity", hang)
        try:
            async with asyncio.timeout(5):
                text = await ask(path)
                assert "zfsilo_volumes" in text
                assert "zfsilo_root_size_bytes" not in text
        finally:
            thawed.set()
        while "zfsilo_root_size_bytes 2.0" not in text:
            text = await ask(path)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"nonsense\r\n\r\n", "405"),
        (b"GET /metrics?x HTTP/1.0\r\n\r\n", "200"),
        (b"x" * 100_000, ""),
    ],
)
async def test_as_much_http_as_is_needed(tmp_path: Path, head: bytes, status: str) -> None:
    async with scraped(tmp_path) as (_front, _metrics, path):
        try:
            answer = await ask(path, head)
        except ConnectionError:
            answer = ""
        assert answer[9:12] == status
        assert not head.startswith(b"HEAD") or answer.endswith("\r\n\r\n"), "no content"


async def test_what_needs_attention_is_named(tmp_path: Path) -> None:
    async with scraped(tmp_path) as (front, _metrics, path):
        await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
        uid = front.read(lambda txn: txn.get(Volume, "data")).uid
        front.write(lambda txn: txn.put(Condition(id=uid, sentences=("it is gone",))))
        summary = front.read(Summary)
        assert [(a.subject, a.sentence) for a in summary.attention] == [
            ("volumes/data", "it is gone")
        ]
        assert "zfsilo_attention 1.0" in await ask(path)


async def test_the_outcome_of_schedules(tmp_path: Path) -> None:
    async with scraped(tmp_path) as (front, _metrics, path):
        outcome = PolicyOutcome(id="nightly", ran_at=9, succeeded_at=5, failures=("data: full",))
        sends = ReplicationOutcome(id="hourly", ran_at=9, succeeded_at=6, failures=("a", "b"))
        front.write(lambda txn: (txn.put(outcome), txn.put(sends)))
        text = await ask(path)
        assert 'zfsilo_replication_failures{policy="hourly"} 2.0' in text
        assert 'zfsilo_replication_success_timestamp_seconds{policy="hourly"} 6.0' in text
        assert 'zfsilo_schedule_failures{policy="nightly"} 1.0' in text
        assert 'zfsilo_schedule_success_timestamp_seconds{policy="nightly"} 5.0' in text
        assert "zfsilo_attention 2.0" in text


async def test_the_age_of_what_a_peer_has(tmp_path: Path) -> None:
    async with scraped(tmp_path) as (front, _metrics, path):
        await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
        volume = front.read(lambda txn: txn.get(Volume, "data"))
        sent = Replication(id=f"{volume.uid}/other", volume="data", peer="other", taken_at=5)
        replica = volume.but(id="copy", uid="d" * 32, replica=ReplicaOf(peer="give", taken_at=7))
        front.write(lambda txn: (txn.put(sent), txn.put(replica)))
        text = await ask(path)
        name = "snapshot_timestamp_seconds"
        assert f'zfsilo_replication_{name}{{peer="other",volume="data"}} 5.0' in text
        assert f'zfsilo_replica_{name}{{peer="give",volume="copy"}} 7.0' in text


async def test_what_was_wrong_with_a_volume_goes_with_it(tmp_path: Path) -> None:
    async with front_of(tmp_path) as front:
        front.write(lambda txn: txn.put(Condition(id="a uid of the past", sentences=("lost",))))
        assert front.read(Summary).attention == ()
        await front.fixture.service.reconciler.sync_all(caller=administrator("root"))
        assert front.read(lambda txn: list(txn.scan(Condition))) == []


async def test_a_session_that_broke_just_now_needs_attention(tmp_path: Path) -> None:
    async with front_of(tmp_path) as front:
        await front.fixture.do(
            CreateVolume(id="data", capacity_bytes=GIB),
            Publish(volume="data", host="take"),
            Connect(id="data", server="give", volume="data"),
        )
        assert await front.service.stats.broken_sessions() == {}
        attachment = front.read(lambda txn: txn.get(Attachment, "data"))
        front.fixture.host.lio.remove_acl(attachment.disk.target, TAKE)
        broken = await front.service.stats.broken_sessions()
        problem = broken["data"]
        assert problem.startswith("the session with give at ")
        assert " is lost since " in problem
        status = await front.root().service.GetStatus(GetStatusRequest())
        assert [(a.subject, a.sentence) for a in status.attention] == [("volumes/data", problem)]
        assert status.attention_count == 1


async def test_a_wish_that_is_not_fulfilled_needs_attention(tmp_path: Path) -> None:
    async with scraped(tmp_path) as (front, _metrics, path):
        folder = tmp_path / "volumes.d"
        folder.mkdir()
        front.service.health.wishes = folder
        assert "zfsilo_attention 0.0" in await ask(path)
        (folder / "far.toml").write_text('server = "give"\nmount_path = "/srv/far"\n')
        (folder / "bad.toml").write_text("server = 7\n")
        assert "zfsilo_attention 2.0" in await ask(path)
        (folder / "bad.toml").unlink()
        (folder / "far.toml").write_text('server = "give"\nstate = "connected"\n')
        front.write(lambda txn: txn.put(ATTACHMENT.but(id="far", state="CONNECTED")))
        assert "zfsilo_attention 0.0" in await ask(path)


def test_the_kernels_counters(tmp_path: Path) -> None:
    lun = tmp_path / "kernel/config/target/core/iblock_0/zfsilo-77/statistics/scsi_lu"
    lun.mkdir(parents=True)
    for name, value in (("num_cmds", "12"), ("read_mbytes", "3"), ("write_mbytes", "4")):
        (lun / name).write_text(f"{value}\n")
    sessions = (
        tmp_path / "kernel/config/target/iscsi/iqn.x:77/fabric_statistics/iscsi_instance/sessions"
    )
    sessions.parent.mkdir(parents=True)
    sessions.write_text("2\n")
    (tmp_path / "class/iscsi_session/session1").mkdir(parents=True)
    counters = Counters(tmp_path)
    assert counters.volume("77") == (12, 3 << 20, 4 << 20)
    assert counters.volume("78") is None
    assert counters.served_sessions(["iqn.x:77", "iqn.x:78"]) == 2
    assert counters.own_sessions() == 1


def test_the_counters_of_a_namespace_are_those_of_its_zvol(tmp_path: Path) -> None:
    namespace = tmp_path / "kernel/config/nvmet/subsystems/nqn.x:77/namespaces/1"
    namespace.mkdir(parents=True)
    (namespace / "device_path").write_text("/dev/zd16\n")
    (tmp_path / "block/zd16").mkdir(parents=True)
    (tmp_path / "block/zd16/stat").write_text("  10 0 16 5  4 0 8 5 0 7 9 0 0 0 0\n")
    counters = Counters(tmp_path)
    assert counters.volume("77", "nqn.x:77") == (14, 16 * 512, 8 * 512)
    assert counters.volume("78", "nqn.x:78") is None
    (tmp_path / "block/zd16/stat").write_text("")
    assert counters.volume("77", "nqn.x:77") is None
    for name, transport in (("nvme0", "pcie"), ("nvme1", "tcp")):
        (tmp_path / f"class/nvme/{name}").mkdir(parents=True)
        (tmp_path / f"class/nvme/{name}/transport").write_text(f"{transport}\n")
    assert counters.own_sessions() == 1, "a local disk is no session"


async def test_the_table_the_alerts_and_the_dashboard_name_what_there_is(tmp_path: Path) -> None:
    async with scraped(tmp_path) as (front, metrics, _path):
        await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
        await metrics.text()
        counters = {"counter": "_total"}
        names = {m.name + counters.get(m.type, "") for m in metrics.registry.collect()}
    names = {name for name in names if name.startswith("zfsilo_")}
    documented = (ROOT / "docs/metrics.md").read_text()
    table = documented[documented.index("| metric |") : documented.index("The dashboard")]
    assert set(NAME.findall(table)) == names
    alerts = (ROOT / "units/monitoring/alerts.yml").read_text()
    dashboard = (ROOT / "units/monitoring/dashboard.json").read_text()
    used = {name.removesuffix("_bucket") for name in NAME.findall(alerts + dashboard)}
    assert used <= names


def test_the_documentation_lists_the_panels() -> None:
    documented = (ROOT / "docs/metrics.md").read_text()
    rows = documented[documented.index("| panel |") :].splitlines()[2:]
    panels = json.loads((ROOT / "units/monitoring/dashboard.json").read_text())["panels"]
    shown = [
        (row.split("|")[1].strip(), re.findall("`([^`]+)`", row.split("|", 2)[2]))
        for row in rows
        if row
    ]
    assert shown == [(p["title"], [target["expr"] for target in p["targets"]]) for p in panels]


def test_the_documentation_names_the_job_of_the_alerts() -> None:
    alerts = (ROOT / "units/monitoring/alerts.yml").read_text()
    (job,) = set(re.findall(r'job="(\w+)"', alerts))
    documented = (ROOT / "docs/metrics.md").read_text()
    assert "`scrape_configs`" in documented
    assert f"`job_name: {job}`" in documented

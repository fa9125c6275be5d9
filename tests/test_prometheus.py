"""Prometheus itself: it scrapes a daemon, and has data for each panel over a life of a volume."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.running import GIB
from tests.scraping import scraped
from tests.service_fixture import administrator
from tests.setup import prometheus
from zfsilod.gateway.sockets import listen_tcp
from zfsilod.host.counters import Counters
from zfsilod.model.records import Volume
from zfsilod.monitoring.exporter import Scrape
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zfsilod.host.fake import FakeHost

MONITORING = Path(__file__).parents[1] / "units/monitoring"
ALERTS = MONITORING / "alerts.yml"
PANELS = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
DEADLINE_S = 60
ROOT = administrator("root")
UP = (
    CreateVolume(id="data", capacity_bytes=GIB),
    Publish(volume="data", host="take"),
    Connect(id="data", server="give", volume="data"),
)
DOWN = (
    Disconnect(id="data"),
    Unpublish(volume="data", host="take"),
    DeleteVolume(id="data"),
)
CONFIG = """\
global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}
rule_files: [{alerts}]
scrape_configs:
  - job_name: zfsilo
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of prometheus and promtool."""
    return prometheus.prepare()


class Scrapes:
    """Counts the scrapes of a daemon, and waits for further ones."""

    def __init__(self, text: Any) -> None:
        self._text = text
        self._count = 0
        self._changed = asyncio.Condition()

    async def text(self) -> bytes:
        """Answer a scrape."""
        async with self._changed:
            self._count += 1
            self._changed.notify_all()
        return bytes(await self._text())

    async def wait_for(self, more: int) -> None:
        """Wait until this many more scrapes have begun."""
        async with asyncio.timeout(DEADLINE_S), self._changed:
            goal = self._count + more
            await self._changed.wait_for(lambda: self._count >= goal)


@asynccontextmanager
async def running(programs: Path, folder: Path, port: int) -> AsyncIterator[str]:
    """Run Prometheus with the alerts and a scrape of this port; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(alerts=ALERTS, port=port))
    with (folder / "prometheus.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            programs / "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={address}",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://{address}"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def ask(url: str, path: str, **parameters: str) -> Any:
    """Ask Prometheus's API."""
    target = f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"

    def fetch() -> Any:
        with urllib.request.urlopen(target, timeout=DEADLINE_S) as response:
            return json.load(response)["data"]

    return await asyncio.to_thread(fetch)


def check(programs: Path, *command: str | Path, text: str = "") -> str:
    """Run promtool, expect success, and return all that it prints."""
    done = subprocess.run(
        [programs / "promtool", "check", *command],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_alerts_are_rules(programs: Path) -> None:
    assert "SUCCESS" in check(programs, "rules", ALERTS)


async def test_the_metrics_keep_to_the_conventions(programs: Path, tmp_path: Path) -> None:
    async with scraped(tmp_path) as (front, metrics, _path):
        await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
        text = (await metrics.text()).decode()
    assert check(programs, "metrics", text=text) == ""


async def test_each_panel_has_data_over_a_life_of_a_volume(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "sys"
    monkeypatch.setattr("zfsilod.monitoring.metrics.Counters", partial(Counters, kernel))
    monkeypatch.setattr("zfsilod.monitoring.metrics.FRESH_S", 0.0)
    async with scraped(tmp_path) as (front, metrics, _path):
        tools_take_time(front.fixture.host, monkeypatch)
        scrapes = Scrapes(metrics.text)
        server = Scrape(scrapes.text)
        listener = listen_tcp("127.0.0.1", 0)
        port = listener.getsockname()[1]
        await server.open(listener)
        async with running(programs, tmp_path, port) as url:
            await scrapes.wait_for(2)
            await front.fixture.do(*UP, *DOWN)  # its series exist from the first operation on
            await scrapes.wait_for(2)
            await front.fixture.do(*UP)
            volume = front.read(lambda txn: txn.get(Volume, "data"))
            write_kernel_counters(kernel, volume.uid)
            metrics.note_report(await front.service.reconciler.sync_all(caller=ROOT))
            await metrics.count_orphans()
            await scrapes.wait_for(4)  # the last one begins when the others are stored
            empty = {
                f"{panel['title']}: {target['expr']}"
                for panel in PANELS
                for target in panel["targets"]
                if not await has_data(url, target["expr"])
            }
            assert not empty
            rules = (await ask(url, "rules"))["groups"][0]["rules"]
            assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
        await server.close()


def tools_take_time(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step take some milliseconds, as the real tools do: a shorter one is not observed."""
    create = host.zfs.create_zvol

    def create_slowly(*words: Any, **named: Any) -> Any:
        time.sleep(0.005)
        return create(*words, **named)

    monkeypatch.setattr(host.zfs, "create_zvol", create_slowly)


def write_kernel_counters(kernel: Path, uid: str) -> None:
    """Write LIO's counters of an exported volume; the simulated host has no kernel."""
    lun = kernel / f"kernel/config/target/core/iblock_0/zfsilo-{uid}/statistics/scsi_lu"
    lun.mkdir(parents=True)
    for name in ("num_cmds", "read_mbytes", "write_mbytes"):
        (lun / name).write_text("1\n")


async def has_data(url: str, expression: str) -> bool:
    """Tell whether a query returns a number."""
    results = (await ask(url, "query", query=expression))["result"]
    return any(not math.isnan(float(series["value"][1])) for series in results)

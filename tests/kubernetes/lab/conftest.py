"""Fixtures: one cluster on the two machines of the lab for all tests, and one pod at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kubernetes.lab.cluster import LabCluster
from tests.kubernetes.lab.pods import OnePod
from tests.kubernetes.lab.progress import say
from tests.kubernetes.workload import Workload
from tests.lab.conftest import JOURNALS, save_journals
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready
from tests.setup import kubelet

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
NAMESPACE = "lab"
SLOWNESS = 5  # of emulated processors
TEST_S = 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test time, without the fixtures, which may have to build the snapshots."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(TEST_S, func_only=True), append=False)


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[LabCluster]:
    """The cluster; when a test fails, the journals of the machines and its logs are kept."""
    snapshot, node = ready(), kubelet.prepare()
    say("restoring both machines")
    with restore_pair(snapshot, code=node / kubelet.DISK) as pair:
        cluster = LabCluster(pair)
        started = False
        try:
            cluster.start()
            started = True
            yield cluster
        finally:
            keep = bool(request.session.testsfailed) or not started
            if keep:
                save_journals(pair, JOURNALS / "kubernetes")
            cluster.end(keep=keep)


@pytest.fixture(scope="module")
def work(lab: LabCluster) -> Workload:
    """The namespace of all pods."""
    return Workload(lab.api, NAMESPACE, SLOWNESS)


@pytest.fixture(scope="module")
def pods(lab: LabCluster, work: Workload) -> OnePod:
    """The pods of the tests, one after the other."""
    return OnePod(lab, work)

"""Fixtures: one cluster for all tests, a namespace for each; a summary for a reader."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kubernetes.cluster import PAGE, KubeCluster, commands_of
from tests.kubernetes.storage import PROJECT
from tests.kubernetes.workload import KubeNamespace

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
# The pod of the example has no owner: on a node that is lost it would be deleted for good.
FIRST, LAST = "test_five_minutes.py", "test_nothing_left.py"
README = PROJECT / "README.md", "## Kubernetes"
BLOCKS = PAGE, "## Changed blocks"
CHANGING = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-z]{26}|\d+(\.\d+)?")
SHOWN = 160  # characters of a warning

warnings: Counter[str] = Counter()
notes: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without root, give each test time, and sort: the example first, what is left last."""
    own = [item for item in items if item.path.is_relative_to(HERE)]
    for item in own:
        item.add_marker(pytest.mark.timeout(600))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
    items.sort(key=lambda item: (item.path.name == LAST, item.path.name != FIRST))


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[KubeCluster]:
    """The cluster, installed as the README says, then with two zones and changed blocks."""
    cluster = KubeCluster()
    keep = True  # the logs of a cluster that does not start
    try:
        cluster.start()
        cluster.install(commands_of(*README))
        cluster.add_zone(*commands_of(*BLOCKS))
        yield cluster
        keep = bool(request.session.testsfailed)
    finally:
        notes.append(f"restarts of containers: {cluster.restarts()}")
        cluster.end(keep=keep)


@pytest.fixture
def ns(cluster: KubeCluster, request: pytest.FixtureRequest) -> Iterator[KubeNamespace]:
    """A namespace, which is deleted after the test; test_nothing_left.py waits for its end."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:63].strip("-")
    namespace = KubeNamespace(cluster, name)
    yield namespace
    for event in cluster.api.objects("events", name):
        if event["type"] == "Warning":
            text = CHANGING.sub("*", event["message"])[:SHOWN]
            warnings[f"{event['reason']}: {text}"] += 1
    cluster.api.delete("namespaces", name)


@pytest.fixture
def note() -> list[str]:
    """Lines for the end of the run."""
    return notes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what a user would have stumbled over, and the result."""
    for line in notes:
        terminalreporter.write_line(line)
    for text, count in sorted(warnings.items()):
        terminalreporter.write_line(f"warning event, {count} times: {text}")
    stats = terminalreporter.stats
    failed = len(stats.get("failed", [])) + len(stats.get("error", []))
    terminalreporter.write_line(f"{len(stats.get('passed', []))} passed, {failed} failed")

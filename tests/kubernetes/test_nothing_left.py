"""After all other tests: nothing is left, nothing was forbidden, no defect and no secret shows."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tests.kubernetes.chart import CONTROLLER, NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kubernetes.cluster import KubeCluster

GONE = ("persistentvolumes", "volumeattachments", "volumesnapshotcontents")
LONG_S = 300.0
DECISION = "authorization.k8s.io/decision"
DEFECTS = re.compile(r"Traceback \(most recent call last\)|internal error|INTERNAL|AssertionError")
OURS = ("plugin-*.log", "take*.log", "give.log", "annex.log")
SECRET = re.compile(r"PRIVATE KEY|chap_?(password|secret)\W{1,4}\w", re.IGNORECASE)
KEY_LINE = 40  # characters of a line of a key that tell it from any other text


def test_no_object_of_a_volume_is_left(cluster: KubeCluster) -> None:
    for kind in GONE:
        cluster.api.until(kind, lambda objects: not objects, f"no {kind} are left", within_s=LONG_S)


def test_no_volume_is_left_on_a_server(cluster: KubeCluster) -> None:
    cluster.until(lambda: not cluster.volumes(), "no volume is left", LONG_S)
    for server in cluster.servers.values():
        cluster.until(lambda s=server: not s.facts(), f"{server.name} is empty", LONG_S)  # type: ignore[misc]


def test_no_session_and_no_mount_is_left_on_a_node(cluster: KubeCluster) -> None:
    for node in cluster.nodes:
        cluster.until(lambda n=node: not n.zfsilod.facts(), f"{node.name} is empty", LONG_S)  # type: ignore[misc]
        assert node.csi_mounts() == [], node.name


def test_nothing_was_forbidden_to_the_accounts(cluster: KubeCluster) -> None:
    """By their roles; that a namespace is being deleted is another reason of a status 403."""
    with cluster.control.audit.open() as log:
        records = [json.loads(line) for line in log]
    accounts = {record["user"]["username"] for record in records}
    assert f"system:serviceaccount:{NAMESPACE}:{CONTROLLER}" in accounts
    forbidden = [
        f"{record['user']['username']} {record['verb']} {record['requestURI']}"
        for record in records
        if record["annotations"][DECISION] != "allow"
        and record["user"]["username"].startswith(f"system:serviceaccount:{NAMESPACE}:")
    ]
    assert forbidden == []


def test_no_log_shows_a_defect(cluster: KubeCluster) -> None:
    logs = [path for pattern in OURS for path in (cluster.folder / "logs").glob(pattern)]
    assert len(logs) == len(cluster.nodes) * 2 + len(cluster.servers) + 1
    lines = [
        f"{path.name}: {line.strip()[:300]}"
        for path in logs
        for line in path.read_text(errors="replace").splitlines()
        if DEFECTS.search(line)
    ]
    assert lines == []


def test_no_secret_shows(cluster: KubeCluster) -> None:
    """Neither in a log nor in an object, except for the Secret that has the join files."""
    keys = set(key_lines(cluster))
    assert keys
    shown = [
        place
        for place, text in texts(cluster)
        if SECRET.search(text) or any(key in text for key in keys)
    ]
    assert shown == []


def key_lines(cluster: KubeCluster) -> Iterator[str]:
    """Yield a line of every private key in the join files."""
    for path in cluster.folder.glob("*.join"):
        for line in path.read_text().split("PRIVATE KEY")[1::2]:
            yield from (word for word in line.splitlines() if len(word) > KEY_LINE)


def texts(cluster: KubeCluster) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of all logs and of all objects that may show a secret."""
    for path in (cluster.folder / "logs").iterdir():
        yield path.name, path.read_text(errors="replace")
    for kind in ("persistentvolumes", "volumeattachments", "configmaps", "events", "csinodes"):
        yield kind, json.dumps(cluster.api.objects(kind))

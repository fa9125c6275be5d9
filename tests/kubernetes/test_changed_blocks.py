"""Changed blocks as backup software gets them: through the sidecar of the chart, by a token."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.kubernetes.workload import KubeNamespace, from_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kubernetes.cluster import KubeCluster

ACCOUNT = "backup"
ROLE = "external-snapshot-metadata-client-runner"  # of external-snapshot-metadata
NAMESPACE = "blocks"
SIZE, BLOCK = 64 << 20, 16 << 10
LAST = SIZE // BLOCK - 1
CALL_S = 120
Blocks = list[int]


class Backup(NamedTuple):
    """Backup software, with the account of a namespace."""

    cluster: KubeCluster
    ns: KubeNamespace

    def blocks(self, snapshot: str, base: str = "", **options: object) -> Blocks:
        """Return the numbers of the blocks that the service lists, in its order."""
        records = json.loads(self.run(snapshot, base, **options))
        assert all(record["volume_capacity_bytes"] == SIZE for record in records)
        ranges = [one for record in records for one in record.get("block_metadata") or []]
        return [number for one in ranges for number in numbers(one)]

    def run(self, snapshot: str, base: str = "", **options: object) -> str:
        """Run the client in the network of the service, and return its output."""
        done = self.ended(snapshot, base, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, snapshot: str, base: str = "", **options: object) -> str:
        """Return why a call fails."""
        done = self.ended(snapshot, base, **options)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def ended(
        self, snapshot: str, base: str, **options: object
    ) -> subprocess.CompletedProcess[str]:
        control = self.cluster.control
        config = control.account_config(self.ns.name, ACCOUNT)
        more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        words = self.cluster.controller.in_network(
            control.kube,
            "blocks",
            f"--kubeconfig={config}",
            f"--namespace={self.ns.name}",
            f"--snapshot={snapshot}",
            f"--base={base}",
            *more,
        )
        return subprocess.run(words, capture_output=True, text=True, timeout=CALL_S, check=False)


def numbers(one: dict[str, int]) -> range:
    """Return the numbers of the blocks of a range; JSON has no offset 0."""
    first = one.get("byte_offset", 0)
    assert first % BLOCK == one["size_bytes"] % BLOCK == 0
    return range(first // BLOCK, (first + one["size_bytes"]) // BLOCK)


def write(device: Path, blocks: dict[int, bytes]) -> None:
    """Write at the beginning of blocks."""
    with device.open("r+b", buffering=0) as file:
        for number, data in blocks.items():
            file.seek(number * BLOCK)
            file.write(data)
        os.fsync(file.fileno())


def content(device: Path) -> list[bytes]:
    """Return the blocks of a device."""
    with device.open("rb") as file:
        blocks = [file.read(BLOCK) for _number in range(LAST + 1)]
        assert not file.read(1), "the device is larger"
    return blocks


@pytest.fixture(scope="module")
def backup(cluster: KubeCluster) -> Iterator[Backup]:
    """A raw device with two snapshots, and an account with the role of backup software."""
    ns = KubeNamespace(cluster, NAMESPACE)
    cluster.type_in(f"kubectl -n {NAMESPACE} create serviceaccount {ACCOUNT}")
    binding = f"--clusterrole={ROLE} --serviceaccount={NAMESPACE}:{ACCOUNT}"
    cluster.type_in(f"kubectl create clusterrolebinding {ACCOUNT} {binding}")
    ns.claim("disk", "64Mi", block=True)
    ns.pod("writer", "disk", block=True)
    device = ns.device("writer", "disk")
    new = {number: os.urandom(BLOCK) for number in (0, 1, 2, 3, 10, LAST)}
    write(device, new | {20: os.urandom(512)})
    ns.snapshot("base", "disk")
    changed = {1: os.urandom(BLOCK), 3: os.urandom(4096), 30: os.urandom(BLOCK)}
    write(device, changed | {10: bytes(BLOCK)})
    ns.snapshot("target", "disk")
    write(device, {40: os.urandom(BLOCK)})
    yield Backup(cluster, ns)
    cluster.api.delete("namespaces", NAMESPACE)


def test_the_ranges_are_those_that_differ(backup: Backup) -> None:
    """Compared with both snapshots as restored volumes, byte for byte; then a backup by them."""
    ns = backup.ns
    for claim in ("base", "target"):
        ns.claim(claim, "64Mi", block=True, **from_snapshot(claim))
    ns.pod("reader", "base", "target", block=True)
    base, target = ns.device("reader", "base"), ns.device("reader", "target")
    old, new = content(base), content(target)
    in_use = [number for number, block in enumerate(new) if block.strip(b"\0")]
    differ = [number for number, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    assert differ == [1, 3, 10, 30]
    assert backup.blocks("target") == in_use
    assert backup.blocks("target", "base") == differ
    said = backup.run("target", "base", source=target, target=base)
    assert said == "the devices are equal\n"
    assert content(base) == new


def test_a_list_in_parts(backup: Backup) -> None:
    records: Any = json.loads(backup.run("target", "base", max_results=1))
    sizes = [len(record.get("block_metadata") or []) for record in records]
    assert max(sizes) == 1
    assert backup.blocks("target", "base", max_results=1) == [1, 3, 10, 30]
    assert backup.blocks("target", "base", starting_offset=4 * BLOCK) == [10, 30]


def test_what_the_plugin_refuses(backup: Backup) -> None:
    """The sidecar passes its codes on."""
    assert "code = InvalidArgument" in backup.refused("base", "target")
    assert "code = OutOfRange" in backup.refused("target", "base", starting_offset=SIZE + 1)
    unknown = backup.refused("target", base_handle="give/unknown")
    assert "code = NotFound" in unknown


def test_after_the_plugin_was_killed(backup: Backup) -> None:
    """The sidecar notices by its next call, which fails; it ends, and is started again."""
    before = backup.cluster.restarts()["snapshot-metadata"]
    backup.cluster.controller.restart_plugin()
    backup.cluster.until(
        lambda: backup.ended("target", "base").returncode == 0, "the service answers"
    )
    assert backup.cluster.restarts()["snapshot-metadata"] == before + 1
    assert backup.blocks("target", "base") == [1, 3, 10, 30]

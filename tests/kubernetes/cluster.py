"""The whole cluster: control plane, two servers in two zones, three nodes, and the chart."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kubernetes.api import NotInTime
from tests.kubernetes.chart import METADATA_HOST, ChartRelease, ControllerPod
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.node import KubeNode
from tests.kubernetes.storage import PROJECT, PoolHost
from tests.setup import kubernetes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kubernetes.api import Object

PAGE = PROJECT / "docs/kubernetes.md"
ZONES = {"give": "default", "annex": "annex"}
NODES = ("default", "default", "annex")  # the zones of node1, node2 and node3
MOST_VOLUMES = (20, 20, 4)  # attached to each
TYPED_S = 120
TWO_ZONES = r"""
kubectl -n zfsilo-csi delete secret zfsilo-csi-backends
kubectl -n zfsilo-csi create secret generic zfsilo-csi-backends \
    --from-file=give.join --from-file=annex.join
helm upgrade zfsilo-csi csi/deploy/helm/zfsilo-csi -n zfsilo-csi --reuse-values \
    --set backends.annex.zones={annex}
"""


class KubeCluster:
    """A cluster and its folder."""

    def __init__(self, most_volumes: tuple[int, ...] = MOST_VOLUMES) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="zk-"))  # short: socket paths are limited
        (self.folder / "logs").mkdir()
        disks = self.folder / "disks"
        disks.mkdir()
        self._built = kubernetes.prepare()
        self.control = ControlPlane(self.folder, self._built / "bin")
        self.api = self.control.api
        self.servers = {name: PoolHost(self.folder, name, disks, z) for name, z in ZONES.items()}
        self.nodes = [
            KubeNode(self.folder, self.control, number, zone, disks, most)
            for number, (zone, most) in enumerate(zip(NODES, most_volumes, strict=True), start=1)
        ]
        self.controller = ControllerPod(self.folder, self.control)
        self.release = ChartRelease(self.api)

    def start(self) -> None:
        """Start everything below the chart: servers, nodes joined to them, snapshots."""
        self.control.start()
        for server in self.servers.values():
            server.start()
            server.admit()
        for node in self.nodes:
            node.start(self.server_of(node))
        self.controller.machine.boot()
        self._stage_documentation()
        self.type_in(f"kubectl apply -f {self._built}/snapshots --server-side")
        self.controller.start_snapshot_controller()

    def install(self, commands: list[str]) -> None:
        """Type the commands that install the chart, and start the containers of its pods."""
        for command in commands:
            self.type_in(command)
        self._start_pods()

    def add_zone(self, *commands: str) -> None:
        """Upgrade the release to two backends in two zones, and by more commands."""
        for command in (*joined(TWO_ZONES), *commands):
            self.type_in(command)
        self.controller.end()
        for node in self.nodes:
            node.end_pod()
        self._start_pods()

    def type_in(self, command: str) -> str:
        """Run a command of the documentation as it stands, as an administrator."""
        return typed(command, self.folder / "clone", self._built / "bin", self.control.admin)

    def quiet(self, node: str) -> None:
        """Wait until a node has no volume any more that an earlier test used."""
        self.api.until(
            "volumeattachments",
            lambda objects: not [one for one in objects if one["spec"]["nodeName"] == node],
            f"{node} has no volume",
        )

    def no_volume_of(self, namespace: str) -> None:
        """Wait until no volume of a namespace is left, neither as an object nor on a server."""

        def none_left(objects: list[Object]) -> bool:
            claims = [volume["spec"].get("claimRef") or {} for volume in objects]
            return not [claim for claim in claims if claim.get("namespace") == namespace]

        self.api.until("persistentvolumes", none_left, f"no volume of {namespace} is left")
        label = f"csi.zfsilo.io/pvc.namespace={namespace}"
        servers = self.servers.values()
        self.until(
            lambda: not any(s.ctl("volume", "list", "--quiet", "-l", label) for s in servers),
            f"no server has a volume of {namespace}",
        )

    def until(self, condition: Callable[[], object], what: str, within_s: float = 60.0) -> None:
        """Wait for a fact of a machine, which no watch tells."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise NotInTime(f"not within {within_s:.0f} s: {what}")
            time.sleep(0.5)

    def restarts(self) -> dict[str, int]:
        """Return how often each sidecar was started again."""
        return {name: sidecar.restarts for name, sidecar in self.controller.sidecars.items()}

    def end(self, *, keep: bool) -> None:
        """End all processes, and remove the folder unless its logs are to be kept."""
        self.controller.end()
        self.controller.snapshot_controller.end()
        for node in self.nodes:
            node.end()
        self.controller.machine.off()
        for server in self.servers.values():
            server.process.end()
        self.control.end()
        self._detach_disks()
        if not keep:
            shutil.rmtree(self.folder)

    def node(self, name: str) -> KubeNode:
        """Return the node of a name."""
        return next(node for node in self.nodes if node.name == name)

    def server_of(self, node: KubeNode) -> PoolHost:
        """Return the server of a node's zone."""
        return next(server for server in self.servers.values() if server.zone == node.zone)

    def volumes(self) -> set[str]:
        """Return the handles of all volumes on all servers."""
        servers = self.servers.items()
        return {f"{name}/{volume}" for name, server in servers for volume in server.volumes()}

    def wait_for_drivers(self) -> None:
        """Wait until kubelet has registered the plugin on every node."""
        names = {node.name for node in self.nodes}

        def registered(nodes: list[Object]) -> bool:
            return names <= {
                node["metadata"]["name"] for node in nodes if node["spec"].get("drivers")
            }

        for node in self.nodes:
            node.registrar.wait_for("registered: true")
        self.api.until("csinodes", registered, "the plugin is registered on every node")

    def _start_pods(self) -> None:
        self.controller.start(self.release)
        for node in self.nodes:
            node.start_pod(self.release)
        self.wait_for_drivers()

    def _stage_documentation(self) -> None:
        """Make the folder in which the documentation's commands are typed."""
        clone = self.folder / "clone"
        clone.mkdir()
        (clone / "csi").symlink_to(PROJECT / "csi")
        for server in self.servers.values():
            (clone / server.join.name).symlink_to(server.join)
        authority = self.control.authority
        authority.issue("metadata", METADATA_HOST, dns=METADATA_HOST)
        (clone / "ca.crt").symlink_to(authority.certificate)
        for suffix in ("crt", "key"):
            (clone / f"tls.{suffix}").symlink_to(authority.folder / f"metadata.{suffix}")

    def _detach_disks(self) -> None:
        """Detach the loop devices of raw disks."""
        listing = ["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"]
        listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            name, _space, file = line.partition(" ")
            # The kernel shows the path from the root of the machine's mount of the disks.
            if f"/{self.folder.name}/disks/" in file:
                subprocess.run(["losetup", "--detach", name], check=True)


def typed(command: str, folder: Path, programs: Path, config: Path) -> str:
    """Run a command in a folder with more programs and a kubeconfig, and return its output."""
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "KUBECONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=TYPED_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def commands_of(page: Path, heading: str) -> list[str]:
    """Return the commands of the first indented block below a heading of a page."""
    _before, _heading, text = page.read_text().partition(f"\n{heading}\n")
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    "))
    block = []
    for line in lines[start:]:
        if not line.startswith("    "):
            break
        block.append(line.strip())
    return joined("\n".join(block))


def joined(block: str) -> list[str]:
    """Return the commands of a block, whose long lines end with a backslash."""
    return block.replace("\\\n", " ").strip().split("\n")

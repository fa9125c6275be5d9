"""The cluster of the lab: one node that runs pods, and one server; the rest beside them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kubernetes.chart import NAMESPACE, ChartRelease, ControllerPod
from tests.kubernetes.cluster import typed
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.lab.node import NAME, STEP_S, LabNode
from tests.kubernetes.lab.progress import say
from tests.kubernetes.objects import DRIVER
from tests.setup import kubernetes
from tests.setup.kubelet import REGISTRY

if TYPE_CHECKING:
    from tests.lab.pair import Pair

DRIVER_S = 900  # until kubelet has started, and then the pod of the plugin
GATEWAY_PORT = 9750
LOST_NODE = "200s"  # the lease of an emulated node is renewed late
# The controller's pod stays pending: its containers run beside the control plane.
INSTALL = f"""\
kubectl apply -f csi/deploy/manifests/namespace.yaml
kubectl -n {NAMESPACE} create secret generic zfsilo-csi-backends --from-file=give.join
helm install zfsilo-csi csi/deploy/helm/zfsilo-csi -n {NAMESPACE} --set imageRegistry={REGISTRY} \
--set backends.give.server=give --set controller.nodeSelector.beside=control-plane
kubectl apply -f csi/deploy/examples/classes.yaml"""
TRANSPORTS = {"iscsi": "zfsilo", "nvme": "zfsilo-nvme"}  # the classes


class LabCluster:
    """A cluster whose node is take and whose server is give."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.folder = Path(tempfile.mkdtemp(prefix="zk-"))  # short: socket paths are limited
        (self.folder / "logs").mkdir()
        self._built = kubernetes.prepare()
        self.control = ControlPlane(self.folder, self._built / "bin", lost_node=LOST_NODE)
        self.api = self.control.api
        self.node = LabNode(pair.take, self.control, self.folder)
        self.controller = ControllerPod(self.folder, self.control)

    def start(self) -> None:
        """Start the control plane and kubelet, and install the chart."""
        self.control.start()
        say("the API server is ready")
        self.node.start()
        say("kubelet is started")
        self.controller.machine.boot()
        self._stage_files()
        self.type_in(f"kubectl apply -f {self._built}/snapshots --server-side")
        self.controller.start_snapshot_controller()
        for command in INSTALL.splitlines():
            self.type_in(command)
        self.controller.start(ChartRelease(self.api), phase="Pending")
        say("the chart is installed")
        self._wait_for_driver()
        say(f"{DRIVER} is registered on {NAME}")

    def type_in(self, command: str) -> str:
        """Run a command as an administrator, in a folder with the chart and the join file."""
        return typed(command, self.folder / "clone", self._built / "bin", self.control.admin)

    def end(self, *, keep: bool) -> None:
        """End all processes, and remove the folder unless its logs are to be kept."""
        self.controller.end()
        self.controller.snapshot_controller.end()
        self.controller.machine.off()
        self.node.end()
        self.control.end()
        if not keep:
            shutil.rmtree(self.folder)

    def _stage_files(self) -> None:
        clone = self.folder / "clone"
        clone.mkdir()
        (clone / "csi").symlink_to(Path(__file__).parents[3] / "csi")
        give = self.pair.give
        address = f"127.0.0.1:{give.forward(GATEWAY_PORT)}"  # of this machine
        words = ("user", "csi", "--role", "controller", "--address", address, "--file", "-")
        join = give.run("zfsiloctl", "pki", "issue", *words, timeout_s=STEP_S).stdout
        (clone / "give.join").write_text(join)

    def _wait_for_driver(self) -> None:
        def registered(nodes: list[Any]) -> bool:
            return any(
                driver["name"] == DRIVER
                for node in nodes
                if node["metadata"]["name"] == NAME
                for driver in node["spec"].get("drivers") or []
            )

        self.api.until(
            "csinodes", registered, f"{DRIVER} is registered on {NAME}", within_s=DRIVER_S
        )

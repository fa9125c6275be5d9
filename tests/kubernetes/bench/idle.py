"""The driver that does nothing, beside the plugin: the same sidecars, kubelets and accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kubernetes.bench.idle_driver import NAME
from tests.kubernetes.chart import CONTROLLER
from tests.kubernetes.machine import NamespaceMachine, Program
from tests.kubernetes.node import KUBELET
from tests.kubernetes.objects import storage_class
from tests.kubernetes.processes import Container
from tests.kubernetes.storage import PYTHON, python_program

if TYPE_CHECKING:
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.node import KubeNode

SIDECARS = ("provisioner", "attacher")
FOLDER = "/idle"  # of the controller's machine
PLUGIN = f"{KUBELET}/plugins/{NAME}"
CLASS = "idle"


class IdleDriver:
    """Its processes in a cluster, and its StorageClass."""

    def __init__(self, cluster: KubeCluster) -> None:
        self._cluster = cluster
        self._logs = cluster.folder / "logs"
        self._processes: list[Program | Container] = []

    def start(self) -> None:
        """Start the driver on every node and beside the controller."""
        spec = {"attachRequired": True, "podInfoOnMount": False, "fsGroupPolicy": "File"}
        self._cluster.api.create("csidrivers", NAME, spec=spec)
        self._start_controller()
        for node in self._cluster.nodes:
            self._start_node(node)
        storage_class(self._cluster, CLASS, provisioner=NAME)

    def end(self) -> None:
        """End all processes."""
        for process in reversed(self._processes):
            process.end()

    def _start_controller(self) -> None:
        controller = self._cluster.controller
        socket = self._start_driver(controller.machine, FOLDER, "controller")
        for name in SIDECARS:
            shipped = self._cluster.release.arguments("deployments", CONTROLLER, name)
            # It has no topology, so the scheduler has no capacities of zones to look at.
            arguments = [word for word in shipped if "capacity" not in word and "csi-" not in word]
            program = self._cluster.control.kube.with_name(f"csi-{name}")
            words = controller.machine.words(program, f"--csi-address={socket}", *arguments)
            environment = controller.sidecars[name].environment
            sidecar = Container(self._logs / f"idle-{name}.log", words, environment)
            self._run(sidecar)

    def _start_node(self, node: KubeNode) -> None:
        socket = self._start_driver(node.machine, PLUGIN, node.name)
        log = self._logs / f"idle-registrar-{node.host}.log"
        paths = (f"--csi-address={socket}", f"--kubelet-registration-path={socket}")
        words = [str(self._cluster.control.kube), "registrar", *paths]
        registrar = Program(log, node.machine, words)
        self._run(registrar)
        registrar.wait_for("registered: true")

    def _start_driver(self, machine: NamespaceMachine, folder: str, node: str) -> str:
        machine.run("mkdir", "-p", folder)
        socket = f"{folder}/csi.sock"
        words = python_program("tests.kubernetes.bench.idle_driver", socket, node)
        self._run(Program(self._logs / f"idle-{node}.log", machine, words, PYTHON))
        return socket

    def _run(self, process: Program | Container) -> None:
        self._processes.append(process)
        process.start()

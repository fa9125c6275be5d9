"""The chart in the cluster: its containers with their own arguments, accounts and configuration."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from tests.kubernetes.control_plane import free_address
from tests.kubernetes.machine import NamespaceMachine, Program
from tests.kubernetes.pod_network import PodNetwork
from tests.kubernetes.processes import Container
from tests.kubernetes.storage import PYTHON, python_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kubernetes.api import ApiServer
    from tests.kubernetes.control_plane import ControlPlane

NAMESPACE = "zfsilo-csi"
CONTROLLER = "zfsilo-csi-controller"
SIDECARS = ("provisioner", "attacher", "resizer", "snapshotter")
ACCOUNT = "run/secrets/kubernetes.io/serviceaccount"
SNAPSHOTS = ("kube-system", "snapshot-controller")
METADATA = "snapshot-metadata"  # the sidecar of changed blocks
METADATA_SERVICE = f"{NAMESPACE}-{METADATA}"  # its Secret has the same name
METADATA_HOST = f"{METADATA_SERVICE}.{NAMESPACE}.svc"


class ChartRelease:
    """What helm has installed."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api

    def pod_spec(self, kind: str, name: str) -> Any:
        """Return the pod specification of a Deployment or a DaemonSet."""
        item = self._api.get(kind, name, NAMESPACE)
        assert item is not None, f"{name} is not installed"
        return item["spec"]["template"]["spec"]

    def containers(self, kind: str, name: str) -> dict[str, Any]:
        """Return the containers of a Deployment or a DaemonSet by their names."""
        return {one["name"]: one for one in self.pod_spec(kind, name)["containers"]}

    def arguments(self, kind: str, name: str, container: str) -> list[str]:
        """Return the arguments of a container."""
        words: list[str] = self.containers(kind, name)[container]["args"]
        return words

    def configure(self, folder: Path) -> None:
        """Write the plugin's configuration; only the address of its metrics is another one."""
        item = self._api.get("configmaps", NAMESPACE, NAMESPACE)
        assert item is not None, "the chart has no ConfigMap"
        text = item["data"]["config.toml"]
        assert '":9809"' in text, text
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(text.replace('":9809"', f'"{free_address()}"'))

    def controller_pod(self, phase: str) -> str:
        """Return the name of the controller's pod, which the sidecars need for their objects."""
        deployment = self._api.get("deployments", CONTROLLER, NAMESPACE)
        assert deployment is not None, "the Deployment is not installed"
        current = deployment["spec"]["template"]["metadata"]["annotations"]

        def current_pod(pods: list[Any]) -> str:
            for pod in pods:
                name = str(pod["metadata"]["name"])
                if name.startswith(CONTROLLER) and _annotations(pod) == current:
                    if pod["status"].get("phase") == phase:
                        return name
            return ""

        text = f"the controller's pod is {phase}"
        return self._api.until("pods", current_pod, text, namespace=NAMESPACE)


class ControllerPod:
    """The containers of the chart's Deployment, and the snapshot controller of the cluster."""

    def __init__(self, folder: Path, control: ControlPlane) -> None:
        self._folder, self._control = folder, control
        self._config = folder / "plugin-controller"
        self._tls = folder / "tls-controller"
        self.machine = NamespaceMachine(
            {"/csi": "", "/etc/zfsilo-csi": self._config, "/tls": self._tls}
        )
        logs = folder / "logs"
        words = python_program("zfsilo_csi", "controller")
        self.plugin = Program(logs / "plugin-controller.log", self.machine, words, PYTHON)
        self.network = PodNetwork(logs / "pod-network.log")
        names = (*SIDECARS, METADATA)
        self.sidecars = {name: Container(logs / f"{name}.log", []) for name in names}
        self.snapshot_controller = Container(logs / "snapshot-controller.log", [])

    def start(self, release: ChartRelease, phase: str = "Running") -> None:
        """Start the plugin and the sidecars with what the chart says, for a pod in a phase."""
        release.configure(self._config)
        self._write_secret(f"{NAMESPACE}-backends", self._config / "backends")
        self._write_account()
        self.plugin.start()
        programs = self._control.kube.parent
        host, _colon, port = self._control.address.partition(":")
        environment = {
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
            "NAMESPACE": NAMESPACE,
            "POD_NAME": release.controller_pod(phase),
        }
        containers = release.containers("deployments", CONTROLLER)
        if METADATA in containers:
            self._open_network(int(port), containers[METADATA]["ports"][0]["containerPort"])
        for name, sidecar in self.sidecars.items():
            if name not in containers:
                continue
            words = self.machine.words(programs / f"csi-{name}", *containers[name]["args"])
            sidecar.words = self.network.words_inside(*words) if name == METADATA else words
            sidecar.environment = environment
            sidecar.start()

    def start_snapshot_controller(self) -> None:
        """Start the snapshot controller with its own account."""
        config = self._control.account_config(*SNAPSHOTS)
        program = self._control.kube.with_name("snapshot-controller")
        self.snapshot_controller.words = [
            str(program),
            f"--kubeconfig={config}",
            "--leader-election=false",
            "--feature-gates=CSIVolumeGroupSnapshot=true",
        ]
        self.snapshot_controller.start()

    def restart_plugin(self) -> None:
        """Kill the plugin and start it again."""
        self.plugin.kill()
        self.plugin.start()

    def end(self) -> None:
        """End the containers of the Deployment."""
        for sidecar in self.sidecars.values():
            sidecar.end()
        self.plugin.end()
        self.network.end()

    def in_network(self, *words: str | Path) -> list[str]:
        """Return the command that runs another one where the sidecar's Service has its name."""
        return self.network.words_inside(*self.machine.words(*words))

    def _open_network(self, api_port: int, port: int) -> None:
        """Give the pod a network in which its Service has its name, and its certificate."""
        self._write_secret(METADATA_SERVICE, self._tls)
        service = self._control.api.get("services", METADATA_SERVICE, NAMESPACE)
        assert service is not None, "the Service of changed blocks is missing"
        self.network.open(api_port, service["spec"]["ports"][0]["port"], port)
        hosts = self.machine.root / "etc/hosts"
        if METADATA_HOST not in hosts.read_text():
            with hosts.open("a") as file:
                file.write(f"127.0.0.1 {METADATA_HOST}\n")

    def _write_secret(self, name: str, folder: Path) -> None:
        """Write the files of a Secret, as kubelet does."""
        folder.mkdir(exist_ok=True)
        secret = self._control.api.get("secrets", name, NAMESPACE)
        assert secret is not None, f"the Secret {name} is missing"
        for file, encoded in secret["data"].items():
            (folder / file).write_bytes(base64.b64decode(encoded))

    def _write_account(self) -> None:
        folder = self.machine.root / ACCOUNT
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(self._control.token(NAMESPACE, CONTROLLER))
        (folder / "namespace").write_text(NAMESPACE)
        (folder / "ca.crt").write_bytes(self._control.authority.certificate.read_bytes())


def _annotations(pod: Any) -> Any:
    return pod["metadata"].get("annotations")

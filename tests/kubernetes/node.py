"""A node of the cluster: kubelet, zfsilod, and the containers of the chart's DaemonSet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kubernetes.control_plane import ControlPlane, free_address
from tests.kubernetes.machine import NamespaceMachine, Program
from tests.kubernetes.storage import PYTHON, ClientHost, PoolHost, python_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kubernetes.chart import ChartRelease

KUBELET = "/var/lib/kubelet"
PLUGIN = f"{KUBELET}/plugins/csi.zfsilo.io"
REGISTRY = f"{KUBELET}/plugins_registry"


class KubeNode:
    """A machine with a kubelet; `name` is that of the node, `host` that of zfsilod."""

    def __init__(
        self,
        folder: Path,
        control: ControlPlane,
        number: int,
        zone: str,
        disks: Path,
        most_volumes: int,
    ) -> None:
        self.name, self.host, self.zone = f"node{number}.example", f"take{number}", zone
        self._folder, self._control = folder, control
        self._kubelet_folder = folder / f"kubelet-{self.host}"
        self._kubelet_folder.mkdir()
        self.machine = NamespaceMachine(
            {
                "/csi": PLUGIN,
                "/registration": REGISTRY,
                "/run/zfsilo": folder / self.host / "run",
                "/etc/zfsilo-csi": folder / f"plugin-{self.host}",
            },
            {KUBELET: self._kubelet_folder},
        )
        self.most_volumes = most_volumes
        limit = f"max_attachments = {self.most_volumes}"
        self.zfsilod = ClientHost(folder, self.host, disks, self.machine, f'zone = "{zone}"', limit)
        control.authority.issue(self.name, f"system:node:{self.name}", "system:nodes")
        self.kubelet = Program(self._log("kubelet"), self.machine, self._kubelet_words())
        plugin = python_program("zfsilo_csi", "node")
        self.plugin = Program(self._log("plugin"), self.machine, plugin, PYTHON)
        self.registrar = Program(self._log("registrar"), self.machine, [])

    def start(self, server: PoolHost) -> None:
        """Boot the machine, join the server, and start zfsilod and kubelet."""
        join = server.invite(self.host)
        self.zfsilod.ctl("join", join, "--as", server.name)
        self.boot()

    def boot(self) -> None:
        """Boot the machine and start what its init would start."""
        self.machine.boot()
        self.machine.run("mkdir", "-p", PLUGIN, REGISTRY)
        self.zfsilod.start()
        self.kubelet.start()

    def start_pod(self, release: ChartRelease) -> None:
        """Start the containers of the DaemonSet's pod, configured by the chart."""
        release.configure(self._folder / f"plugin-{self.host}")
        arguments = release.arguments("daemonsets", "zfsilo-csi-node", "registrar")
        self.registrar.command = [self._control.kube, "registrar", *arguments]
        self.plugin.start()
        self.registrar.start()

    def end_pod(self) -> None:
        """End the containers."""
        self.registrar.end()
        self.plugin.end()

    def crash(self) -> None:
        """Lose all processes and mounts, as by a power cut."""
        for program in (self.kubelet, self.registrar, self.plugin, self.zfsilod.process):
            program.kill()
        self.machine.off()
        self.zfsilod.reboot()

    def end(self) -> None:
        """End everything."""
        self.end_pod()
        self.kubelet.end()
        self.zfsilod.process.end()
        self.machine.off()

    def volume_path(self, pod_uid: str, volume: str) -> Path:
        """Return the folder of a mounted volume, as a path of the host."""
        inner = f"{KUBELET}/pods/{pod_uid}/volumes/kubernetes.io~csi/{volume}/mount"
        return self.machine.root / inner.lstrip("/")

    def device_path(self, pod_uid: str, volume: str) -> Path:
        """Return the device of a raw volume, as a path of the host."""
        inner = f"{KUBELET}/pods/{pod_uid}/volumeDevices/kubernetes.io~csi/{volume}"
        # The link of kubelet is absolute, so it is followed inside.
        device = self.machine.run("readlink", "--canonicalize-existing", inner).strip()
        return self.machine.root / device.lstrip("/")

    def csi_mounts(self) -> list[str]:
        """Return the mount points of volumes of the plugin."""
        return self.machine.mounts("kubernetes.io~csi") + self.machine.mounts("kubernetes.io/csi")

    def _kubelet_words(self) -> list[str]:
        return [
            str(self._control.kube),
            "node",
            f"--name={self.name}",
            f"--kubeconfig={self._control.config(self.name)}",
            f"--root-dir={KUBELET}",
            f"--port={free_address().rpartition(':')[2]}",
        ]

    def _log(self, part: str) -> Path:
        return self._folder / "logs" / f"{part}-{self.host}.log"

"""The node of the cluster: containerd and kubelet on take, and commands in its pods."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kubernetes.certificates import kubeconfig
from tests.kubernetes.processes import ClusterProcess
from tests.lab.emulator import CODE
from tests.setup import kubelet

if TYPE_CHECKING:
    from tests.kubernetes.control_plane import ControlPlane
    from tests.lab.machine import GuestResult, Machine

NAME = "take"
STEP_S = 300
IN_POD_S = 600
DISK = "/run/lab-node"
API_PORT = 6443  # on the loopback of take, forwarded to the API server
ETC = "/etc/kubernetes"
SSH_PORT = 22
ATTACHMENTS = 16
CONTAINERD = f"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{kubelet.PAUSE}"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"""
# A network between the node and its pods: kubelet's probes need it.
NETWORK = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "pods",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]]},
        }
    ],
}
# The disk stays mounted: containerd's folder on it has the images, unpacked.
INSTALL = f"""
disk=/dev/disk/by-id/virtio-{CODE}
blockdev --flushbufs $disk  # the kernel may have cached blocks of the disk that was here before
mkdir -p {DISK} /var/lib/containerd
mount $disk {DISK}
mount --bind {DISK}/{kubelet.STORE} /var/lib/containerd
cp -as {DISK}/{kubelet.ROOT}/. /
modprobe -a overlay bridge veth loop
systemctl daemon-reload
systemctl start containerd.service
"""
KUBELET: dict[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "address": "127.0.0.1",
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": False},
        "x509": {"clientCAFile": f"{ETC}/ca.crt"},
    },
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "systemd",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "makeIPTablesUtilChains": False,  # there are no services
    "imageGCHighThresholdPercent": 100,  # what is removed cannot be pulled again
    # The images nearly fill their disk: kubelet would evict the pods of the tests.
    "evictionHard": dict.fromkeys(("nodefs.available", "imagefs.available"), "0%"),
    "runtimeRequestTimeout": "10m",
}
KUBELET_UNIT = f"""\
[Service]
ExecStart=/usr/bin/kubelet --config={ETC}/kubelet.json --kubeconfig={ETC}/kubelet.kubeconfig \\
    --hostname-override={NAME} --node-ip=10.77.0.2
Restart=on-failure
"""


def install(take: Machine) -> None:
    """Install containerd and kubelet from the code disk."""
    take.put("/etc/containerd/config.toml", CONTAINERD.encode(), 0o644)
    take.put("/etc/cni/net.d/10-pods.conflist", json.dumps(NETWORK).encode(), 0o644)
    take.put("/etc/systemd/system/kubelet.service", KUBELET_UNIT.encode(), 0o644)
    take.put(f"{ETC}/kubelet.json", json.dumps(KUBELET).encode(), 0o644)
    take.sh(INSTALL, timeout_s=STEP_S)


class LabNode:
    """The machine take, as a node."""

    def __init__(self, take: Machine, control: ControlPlane, folder: Path) -> None:
        self.machine = take
        self._control, self._folder = control, folder
        control.authority.issue(NAME, f"system:node:{NAME}", "system:nodes")
        self._tunnel = ClusterProcess(folder / "logs/tunnel.log", self._ssh())

    def start(self) -> None:
        """Admit the plugin to zfsilod as the documentation says, and start kubelet."""
        take = self.machine
        install(take)
        limit = f"[csi]\nmax_attachments = {ATTACHMENTS}\n"
        take.put("/etc/zfsilo/zfsilod.toml", limit.encode(), 0o644)
        take.run("systemctl", "enable", "zfsilod-csi.socket", timeout_s=STEP_S)
        take.run("systemctl", "restart", "zfsilod.service", timeout_s=STEP_S)
        self._tunnel.start()
        self._write_credentials()
        take.run("systemctl", "start", "kubelet.service", timeout_s=STEP_S)

    def end(self) -> None:
        """End the connection to the API server."""
        self._tunnel.end()

    def run_in(self, pod: dict[str, Any], *words: str) -> GuestResult:
        """Run a command in the container of a pod that runs; it may wait for the server."""
        container = str(pod["status"]["containerStatuses"][0]["containerID"])
        enter = ("ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", uuid.uuid4().hex)
        command = (*enter, container.removeprefix("containerd://"), *words)
        return self.machine.run(*command, timeout_s=IN_POD_S)

    def _write_credentials(self) -> None:
        pki = self._control.authority.folder
        for name in ("ca.crt", f"{NAME}.crt", f"{NAME}.key"):
            self.machine.put(f"{ETC}/{name}", (pki / name).read_bytes(), 0o600)
        keys = {
            "client-certificate": f"{ETC}/{NAME}.crt",
            "client-key": f"{ETC}/{NAME}.key",
        }
        address, path = f"127.0.0.1:{API_PORT}", self._folder / "take.kubeconfig"
        config = kubeconfig(path, address, Path(ETC) / "ca.crt", keys)
        self.machine.put(f"{ETC}/kubelet.kubeconfig", config.read_bytes(), 0o600)

    def _ssh(self) -> list[str]:
        """Return the command that forwards a port of take to the API server."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
        words = [word for option in options for word in ("-o", option)]
        key, port = str(self.machine.images.ssh_key), str(self.machine.forward(SSH_PORT))
        words += ["-o", "ExitOnForwardFailure=yes", "-F", "none", "-i", key, "-p", port]
        forward = f"127.0.0.1:{API_PORT}:{self._control.address}"
        return ["ssh", "-N", *words, "-R", forward, "root@127.0.0.1"]

"""etcd, API server, controller manager and scheduler, with RBAC and an audit log."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

from tests.kubernetes.api import ApiError, ApiServer
from tests.kubernetes.certificates import Authority, kubeconfig
from tests.kubernetes.processes import ClusterProcess

if TYPE_CHECKING:
    from pathlib import Path

READY_S = 120
TOKEN_S = 24 * 3600
LOST_NODE = "15s"  # after its last heartbeat; kubelet's lease here is 12 s
AUDITED = ("system:serviceaccounts:zfsilo-csi", "system:serviceaccounts:kube-system")
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": list(AUDITED)}, {"level": "None"}],
}


def free_address() -> str:
    """Return an address on the loopback whose port is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    return f"{host}:{port}"


class ControlPlane:
    """The four programs, their certificates and their logs."""

    def __init__(self, folder: Path, programs: Path, lost_node: str = LOST_NODE) -> None:
        self._lost_node = lost_node
        self.kube = programs / "kube"
        self.logs = folder / "logs"
        self.address = free_address()
        self.authority = Authority(folder / "pki")
        self.audit = self.logs / "audit.log"
        self._folder = folder
        self._issue()
        self.admin = self.config("admin")
        self.api = ApiServer(self.address, folder / "pki")
        self.parts = {
            "etcd": self._part("etcd", *self._etcd()),
            "apiserver": self._part("apiserver", *self._apiserver()),
            "manager": self._part("manager", *self._manager()),
            "scheduler": self._part("scheduler", *self._client("scheduler")),
        }

    def start(self) -> None:
        """Start everything, and wait until the API server is ready."""
        for name in ("etcd", "apiserver"):
            self.parts[name].start()
        self._wait_until_ready()
        for name in ("manager", "scheduler"):
            self.parts[name].start()

    def end(self) -> None:
        """End everything, the API server after its clients."""
        for part in reversed(self.parts.values()):
            part.end()

    def config(self, user: str) -> Path:
        """Write the kubeconfig of a user with a certificate."""
        pki = self.authority.folder
        keys = {
            "client-certificate": str(pki / f"{user}.crt"),
            "client-key": str(pki / f"{user}.key"),
        }
        path = self._folder / f"{user}.kubeconfig"
        return kubeconfig(path, self.address, self.authority.certificate, keys)

    def account_config(self, namespace: str, account: str) -> Path:
        """Write the kubeconfig of a service account."""
        path = self._folder / f"{namespace}-{account}.kubeconfig"
        user = {"token": self.token(namespace, account)}
        return kubeconfig(path, self.address, self.authority.certificate, user)

    def token(self, namespace: str, account: str) -> str:
        """Return a token of a service account."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.api.ask("POST", path, {"spec": {"expirationSeconds": TOKEN_S}})
        return str(answer["status"]["token"])

    def _issue(self) -> None:
        self.authority.issue("apiserver", "kube-apiserver", server=True)
        self.authority.issue("admin", "admin", "system:masters")
        self.authority.issue("manager", "system:kube-controller-manager")
        self.authority.issue("scheduler", "system:kube-scheduler")

    def _part(self, name: str, *arguments: str) -> ClusterProcess:
        return ClusterProcess(self.logs / f"{name}.log", [self.kube, name, *arguments])

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            self.parts["apiserver"].check()
            try:
                self.api.ask("GET", "/readyz")
            except (OSError, ApiError):
                assert time.monotonic() < deadline, self.parts["apiserver"].tail()
                time.sleep(0.2)  # nothing tells when it listens
            else:
                return

    def _etcd(self) -> list[str]:
        self._etcd_url, peer = f"http://{free_address()}", f"http://{free_address()}"
        return [
            f"--data-dir={self._folder}/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]

    def _apiserver(self) -> list[str]:
        pki = self.authority.folder
        policy = self._folder / "audit.json"
        policy.write_text(json.dumps(AUDIT_POLICY))
        return [
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.address.rpartition(':')[2]}",
            "--endpoint-reconciler-type=none",  # a loopback address is no endpoint
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/accounts.pub",
            f"--service-account-signing-key-file={pki}/accounts.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit}",
        ]

    def _client(self, name: str) -> list[str]:
        config = self.config(name)
        return [
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_address().rpartition(':')[2]}",
            "--leader-elect=false",
        ]

    def _manager(self) -> list[str]:
        pki = self.authority.folder
        return [
            *self._client("manager"),
            f"--service-account-private-key-file={pki}/accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--use-service-account-credentials",
            "--controllers=*,-node-ipam-controller",  # pods have no network
            f"--node-monitor-grace-period={self._lost_node}",
        ]

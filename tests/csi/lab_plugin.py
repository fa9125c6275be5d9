"""The plugin in the lab: installs the controller on give and the node on take, and reaches both."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from csi.v1 import csi_pb2 as csi

from tests.csi.plugin_client import NODE, PluginClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

PORT = 9751  # forwarded by the lab; systemd-socket-proxyd connects it to the plugin's socket
ATTACHMENTS = 4
KUBELET = "/var/lib/kubelet"
TIMEOUT_S = 120
CONFIG = """\
endpoint = "unix:///run/zfsilo-csi.sock"
[backends.give]
join = "/etc/zfsilo-csi/give.join"
"""
SERVICE = """\
[Service]
Environment=PYTHONPATH=/usr/lib/zfsilo
ExecStart=/usr/bin/python3 -m zfsilo_csi --config /etc/zfsilo-csi/config.toml {role}
Restart=always
RestartSec=100ms
"""
PROXY_SOCKET = f"""\
[Socket]
ListenStream=0.0.0.0:{PORT}
"""
PROXY = """\
[Unit]
Requires=zfsilo-csi.service
[Service]
ExecStart=/usr/lib/systemd/systemd-socket-proxyd /run/zfsilo-csi.sock
"""


def install(pair: Pair, attachments: int = ATTACHMENTS) -> None:
    """Set up the plugin on both machines as the documentation says, without Kubernetes."""
    give, take = pair.give, pair.take
    words = ("user", "csi", "--role", "controller", "--address", "give", "--file", "-")
    join = give.run("zfsiloctl", "pki", "issue", *words, timeout_s=TIMEOUT_S).stdout
    give.put("/etc/zfsilo-csi/give.join", join.encode(), 0o600)
    limit = f"[csi]\nmax_attachments = {attachments}\n"
    take.put("/etc/zfsilo/zfsilod.toml", limit.encode(), 0o644)
    take.run("mkdir", "-p", KUBELET)
    take.run("systemctl", "enable", "zfsilod-csi.socket", timeout_s=TIMEOUT_S)
    take.run("systemctl", "restart", "zfsilod.service", timeout_s=TIMEOUT_S)
    for machine, role in ((give, "controller"), (take, "node")):
        start(machine, role)


def start(machine: Machine, role: str) -> None:
    """Start the plugin on a machine, and forward PORT to its socket."""
    units = "/etc/systemd/system/zfsilo-csi"
    machine.put("/etc/zfsilo-csi/config.toml", CONFIG.encode(), 0o644)
    machine.put(f"{units}.service", SERVICE.format(role=role).encode(), 0o644)
    machine.put(f"{units}-proxy.socket", PROXY_SOCKET.encode(), 0o644)
    machine.put(f"{units}-proxy.service", PROXY.encode(), 0o644)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "zfsilo-csi.service", "zfsilo-csi-proxy.socket")
    machine.sh(
        "for i in $(seq 300); do [ -S /run/zfsilo-csi.sock ] && exit; sleep 0.1; done; exit 1"
    )


@asynccontextmanager
async def plugin_of(pair: Pair) -> AsyncIterator[PluginClient]:
    """Connect to both plugins, and register the node by NodeGetInfo, as kubelet does."""
    options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
    give, take = (f"127.0.0.1:{machine.forward(PORT)}" for machine in (pair.give, pair.take))
    async with (
        grpc.aio.insecure_channel(give, options=options) as controller,
        grpc.aio.insecure_channel(take, options=options) as node,
    ):
        plugin = PluginClient(Path(KUBELET), controller, node)
        info = await plugin.node.NodeGetInfo(csi.NodeGetInfoRequest(), wait_for_ready=True)
        assert info.node_id == NODE
        yield plugin

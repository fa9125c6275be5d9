"""The plugin on the two machines of the lab: controller on give, node on take."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from csi.v1 import csi_pb2 as csi

from tests.csi.cluster import NODE, Plugin, mount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

PORT = 9751  # of those that the lab forwards; the plugins' sockets are behind it
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
    """Set up the plugin on both machines as docs/kubernetes.md says, but for Kubernetes."""
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
    """Start the plugin of a machine, and lead a port to its socket."""
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
async def plugin_of(pair: Pair) -> AsyncIterator[Plugin]:
    """Reach the plugin of both machines, and let the node make itself known, as kubelet does."""
    options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
    give, take = (f"127.0.0.1:{each.forward(PORT)}" for each in (pair.give, pair.take))
    async with (
        grpc.aio.insecure_channel(give, options=options) as controller,
        grpc.aio.insecure_channel(take, options=options) as node,
    ):
        plugin = Plugin(Path(KUBELET), controller, node)
        info = await plugin.node.NodeGetInfo(csi.NodeGetInfoRequest(), wait_for_ready=True)
        assert info.node_id == NODE
        yield plugin


async def up(plugin: Plugin, volume_id: str, pod: str, kind: Any = None) -> str:
    """Bring a volume to a pod, and return where the pod sees it."""
    context = await plugin.publish(volume_id, volume_capability=kind or mount())
    await plugin.stage(volume_id, context, kind, f"staging-{pod}")
    await plugin.mount(volume_id, pod, kind, f"staging-{pod}")
    return plugin.path(pod)


async def down(plugin: Plugin, volume_id: str, pod: str) -> None:
    """Take it away again, as for a pod that is deleted, and delete it."""
    await plugin.unmount(volume_id, pod)
    await plugin.unstage(volume_id, f"staging-{pod}")
    await plugin.unpublish(volume_id)
    await plugin.delete(volume_id)

"""zfsilo-csi: command line of the CSI plugin.

zfsilo-csi [--config FILE] [--endpoint unix:PATH] controller|node|all
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilo_csi import __version__ as VERSION
from zfsilo_csi import config, json_log

if TYPE_CHECKING:
    from zfsilo_csi.config import PluginConfig
    from zfsilo_csi.server import CsiServer

EXIT_CONFIG = 78  # EX_CONFIG of sysexits(3)


async def serve(settings: PluginConfig, role: str) -> None:
    """Serve a role until SIGTERM or SIGINT."""
    from zfsilo_csi.metrics import CallMetrics
    from zfsilo_csi.server import CsiServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = CallMetrics(VERSION)
    async with AsyncExitStack() as stack:
        server = CsiServer(settings.endpoint, metrics)
        add_services(server, settings, role, stack)
        await server.start()
        stack.push_async_callback(server.stop)
        if settings.metrics:
            stack.callback((await metrics.serve(settings.metrics)).close)
        await stop.wait()


def add_services(
    server: CsiServer, settings: PluginConfig, role: str, stack: AsyncExitStack
) -> None:
    """Add the CSI services of a role (controller, node or all) to a server."""
    from zfsilo_csi import channel
    from zfsilo_csi.backends import Backends
    from zfsilo_csi.controller_health import HealthController
    from zfsilo_csi.group_snapshots import GroupSnapshotController
    from zfsilo_csi.identity import FeatureSource, IdentityService
    from zfsilo_csi.node import NodeService
    from zfsilo_csi.publications import PublicationController
    from zfsilo_csi.snapshot_metadata import SnapshotMetadataService
    from zfsilo_csi.snapshots import SnapshotController
    from zfsilo_csi.stubs import Zfsilod
    from zfsilo_csi.volumes import VolumeController

    source: FeatureSource | None = None
    if role in ("node", "all"):
        local = channel.local(settings.node.socket)
        stack.push_async_callback(local.close)
        source = node = NodeService(Zfsilod("zfsilod of this node", local), settings.backends)
        stack.push_async_callback(node.close)
        server.add("Node", node, node.health())
    if role in ("controller", "all"):
        source = backends = Backends(settings.backends, channel.remote)
        stack.push_async_callback(backends.close)
        server.add(
            "Controller",
            VolumeController(backends),
            HealthController(backends),
            PublicationController(backends),
            SnapshotController(backends),
        )
        server.add("GroupController", GroupSnapshotController(backends))
        server.add("SnapshotMetadata", SnapshotMetadataService(backends))
    assert source is not None, f"unknown role {role}"
    server.add("Identity", IdentityService(settings.driver, VERSION, source))


def main() -> int:
    """Run zfsilo-csi; exit 78 if the configuration is invalid."""
    parser = argparse.ArgumentParser(prog="zfsilo-csi", description="CSI plugin of zfsilo")
    parser.add_argument("role", choices=("controller", "node", "all"))
    parser.add_argument("--config", type=Path, default=Path("/etc/zfsilo-csi/config.toml"))
    parser.add_argument("--endpoint", default="", help="override the configured endpoint")
    parser.add_argument("--version", action="version", version=f"zfsilo-csi {VERSION}")
    options = parser.parse_args()
    try:
        settings = config.load(options.config)
        settings.endpoint = options.endpoint or settings.endpoint
        json_log.set_up(settings.log_level)
        asyncio.run(serve(settings, options.role))
    except config.ConfigError as error:
        sys.stderr.write(f"zfsilo-csi: {error}\n")
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())

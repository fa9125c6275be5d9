"""zfsilo-csi: the CSI plugin.

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
from zfsilo_csi import config, logs

if TYPE_CHECKING:
    from zfsilo_csi.config import Config
    from zfsilo_csi.server import Server

EXIT_CONFIG = 78  # EX_CONFIG of sysexits(3)


async def serve(settings: Config, role: str) -> None:
    """Run the plugin until a signal."""
    from zfsilo_csi import server as servers
    from zfsilo_csi.metrics import Metrics

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics(VERSION)
    async with AsyncExitStack() as stack:
        server = servers.Server(settings.endpoint, metrics)
        compose(server, settings, role, stack)
        await server.start()
        stack.push_async_callback(server.stop)
        if settings.metrics:
            stack.callback((await metrics.serve(settings.metrics)).close)
        await stop.wait()


def compose(server: Server, settings: Config, role: str, stack: AsyncExitStack) -> None:
    """Put together the services of a role: controller, node or all."""
    from zfsilo_csi import channel
    from zfsilo_csi.api import Zfsilod
    from zfsilo_csi.backends import Backends
    from zfsilo_csi.controller import Volumes
    from zfsilo_csi.groups import Groups
    from zfsilo_csi.identity import Identity, Source
    from zfsilo_csi.node import Node
    from zfsilo_csi.publish import Publications
    from zfsilo_csi.snapshots import Snapshots

    source: Source | None = None
    if role in ("node", "all"):
        local = channel.local(settings.node.socket)
        stack.push_async_callback(local.close)
        source = node = Node(Zfsilod("the zfsilod of this node", local), settings.backends)
        server.add("Node", node)
    if role in ("controller", "all"):
        source = backends = Backends(settings.backends, channel.remote)
        stack.push_async_callback(backends.close)
        server.add("Controller", Volumes(backends), Publications(backends), Snapshots(backends))
        server.add("GroupController", Groups(backends))
    assert source is not None, f"{role} is no role"
    server.add("Identity", Identity(settings.executor, VERSION, source))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="zfsilo-csi", description="zfsilo for Kubernetes")
    parser.add_argument("role", choices=("controller", "node", "all"))
    parser.add_argument("--config", type=Path, default=Path("/etc/zfsilo-csi/config.toml"))
    parser.add_argument("--endpoint", default="", help="instead of the configuration's")
    parser.add_argument("--version", action="version", version=f"zfsilo-csi {VERSION}")
    return parser.parse_args(arguments)


def main() -> int:
    """Run zfsilo-csi; exit 78 when the configuration is wrong."""
    options = _options(sys.argv[1:])
    try:
        settings = config.load(options.config)
    except config.ConfigError as error:
        sys.stderr.write(f"zfsilo-csi: {error}\n")
        return EXIT_CONFIG
    settings.endpoint = options.endpoint or settings.endpoint
    logs.set_up(settings.log_level)
    try:
        asyncio.run(serve(settings, options.role))
    except config.ConfigError as error:
        sys.stderr.write(f"zfsilo-csi: {error}\n")
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())

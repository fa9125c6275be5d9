"""zfsilod-gateway.service: the process that other hosts reach, without privileges.

systemd passes the listening sockets of zfsilod-tcp.socket.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from zfsilod.gateway import dial
from zfsilod.gateway.listener import Gateway
from zfsilod.gateway.service_manager import notify, notify_watchdog
from zfsilod.gateway.sockets import inherited
from zfsilod.gateway.uplink import Uplink

LINK = Path("/run/zfsilo/gateway.sock")


def connect() -> socket.socket:
    """Connect to the daemon; systemd starts it if it does not run. Raises OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.settimeout(0)
        link.connect(os.fspath(LINK))
    except OSError:
        link.close()
        raise
    return link


async def serve() -> None:
    """Relay until a signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(Uplink(connect))
    for listener, _unit in inherited():
        gateway.listen(listener)
    gc.freeze()  # full collections need not walk what lives as long as the gateway
    notify("READY=1")
    watchdog = loop.create_task(notify_watchdog())
    await stop.wait()
    watchdog.cancel()
    gateway.close()


def main() -> int:
    """Run the gateway, or carry one stream to a peer."""
    if sys.argv[1:] == ["dial"]:
        return dial.main()
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())

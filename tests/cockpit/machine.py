"""A machine with a real systemd, zfsilod over a simulated host, Cockpit, and Chromium."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup import cockpit
from tests.systemd import linux
from tests.systemd.simulated import simulated_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.inner_process import InnerProcess
    from tests.systemd.namespace import SystemdHost

PAGE = "/usr/share/cockpit/zfsilo"
SESSIONS = {"root": 9090, "guest": 9091}
"""The ports of Cockpit, by the user whose session it is."""
GUEST = 1000
# The socket listens before the service runs: no test waits for it.
SOCKET = """
[Socket]
ListenStream=127.0.0.1:{port}
"""
SERVICE = """
[Service]
User={user}
Environment=HOME=/tmp
ExecStart=/usr/lib/cockpit/cockpit-ws --no-tls --local-session=cockpit-bridge
"""


@contextmanager
def cockpit_host() -> Iterator[SystemdHost]:
    """Boot a machine whose zfsilod has a simulated host, with Cockpit for root and for a guest."""
    page = cockpit.prepare()
    with simulated_host() as machine:
        machine.copy_in(page, PAGE)
        if machine.run("getent", "passwd", str(GUEST), check=False).rc != 0:
            machine.run("useradd", "--uid", str(GUEST), "guest")
        for name, port in SESSIONS.items():
            unit = f"/etc/systemd/system/page-{name}"
            machine.write(f"{unit}.socket", SOCKET.format(port=port))
            user = "root" if name == "root" else str(GUEST)
            machine.write(f"{unit}.service", SERVICE.format(user=user))
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", *(f"page-{name}.socket" for name in SESSIONS))
        yield machine


@contextmanager
def inside_network(machine: SystemdHost) -> Iterator[None]:
    """Let the sockets of this thread be those of the machine: the driver listens there only."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    inner = os.open(f"/proc/{machine.pid}/ns/net", os.O_RDONLY)
    try:
        linux.setns(inner, linux.CLONE_NEWNET)
        yield
    finally:
        linux.setns(before, linux.CLONE_NEWNET)
        os.close(before)
        os.close(inner)


@contextmanager
def driver(machine: SystemdHost) -> Iterator[str]:
    """Run the browser's driver in the machine, and yield its address."""
    environment = {"HOME": "/tmp"}
    with machine.start("/usr/bin/chromedriver", "--port=9515", env=environment) as process:
        try:
            wait_for_line(process, "started successfully")
            yield "http://127.0.0.1:9515"
        finally:
            process.kill_all()


def wait_for_line(process: InnerProcess, text: str) -> None:
    """Read the output of a process up to a line."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"the driver ended: {''.join(seen)}")


def axe_source() -> str:
    """Return the script of axe-core, which checks the accessibility of a page."""
    return Path(cockpit.modules(), "node_modules/axe-core/axe.min.js").read_text()

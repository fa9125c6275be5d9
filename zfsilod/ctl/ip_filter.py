"""Servers outside private networks: the daemon's unit lets it speak to them when it is told to.

zfsilod.service denies what is not in PRIVATE, so a server elsewhere, and a name server elsewhere
that tells its address, are added to IPAddressAllow= of the unit: systemd.resource-control(5).
"""

from __future__ import annotations

import ipaddress
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.ctl import paths
from zfsilod.host.run import Runner

if TYPE_CHECKING:
    from collections.abc import Sequence

PRIVATE = (
    "127.0.0.0/8",
    "::1/128",
    "169.254.0.0/16",
    "fe80::/64",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
)
RESOLVERS = Path("/etc/resolv.conf")
TOOL_S = 30
ANY = tuple(range(256))


def let_out(name: str) -> None:
    """Let the daemon speak to a server, which takes something when it is elsewhere."""
    found = outside([*_resolve(name), *name_servers(RESOLVERS)])
    if found and not paths.simulation():
        argv = permission(found)
        if Runner()(argv, timeout_s=TOOL_S, ok=ANY).rc != 0:
            sys.stderr.write(f"zfsiloctl: zfsilod may not reach it yet: {shlex.join(argv)}\n")


def permission(addresses: list[str]) -> list[str]:
    """Return the command that lets the daemon speak to these addresses too."""
    return ["systemctl", "set-property", "zfsilod.service", f"IPAddressAllow={' '.join(addresses)}"]


def blocked(name: str) -> list[str]:
    """Return the addresses of a server that the daemon's unit does not let it speak to."""
    argv = ["systemctl", "show", "--value", "--property=IPAddressAllow", "zfsilod.service"]
    allowed = Runner()(argv, timeout_s=TOOL_S, ok=ANY).stdout.split()
    return outside(_resolve(name), allowed) if allowed else []


def outside(addresses: list[str], inside: Sequence[str] = PRIVATE) -> list[str]:
    """Return the addresses that are in none of these networks."""
    networks = [ipaddress.ip_network(each) for each in inside]
    found = dict.fromkeys(ipaddress.ip_address(each.partition("%")[0]) for each in addresses)
    return [str(each) for each in found if not any(each in network for network in networks)]


def name_servers(path: Path) -> list[str]:
    """Return the name servers of a resolv.conf(5)."""
    lines = path.read_text().splitlines() if path.exists() else []
    words = (line.split() for line in lines)
    return [each[1] for each in words if each[:1] == ["nameserver"] and len(each) > 1]


def _resolve(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []  # whoever asks it next will say so
    return list(dict.fromkeys(str(each[4][0]) for each in found))

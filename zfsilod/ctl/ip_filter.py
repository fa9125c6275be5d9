"""IP filter of zfsilod.service: which servers the daemon may reach, and how to allow more.

The unit allows the private networks in PRIVATE only. A server outside them, and a name server
outside them that resolves its name, are added to IPAddressAllow=: systemd.resource-control(5).
"""

from __future__ import annotations

import ipaddress
import shlex
import socket
import sys
from pathlib import Path

from zfsilod.ctl import paths
from zfsilod.host.run import Runner
from zfsilod.model.lean import TYPE_CHECKING

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


def allow(name: str) -> None:
    """Allow the daemon to reach a server, where the unit would not."""
    addresses = outside([*resolved(name), *name_servers(RESOLVERS)])
    if addresses and not paths.simulation():
        argv = permission(addresses)
        if Runner()(argv, timeout_s=TOOL_S, ok=ANY).rc != 0:
            sys.stderr.write(
                f"zfsiloctl: zfsilod.service may not reach {name}; run: {shlex.join(argv)}\n"
            )


def permission(addresses: list[str]) -> list[str]:
    """Return the command that allows the daemon to reach these addresses."""
    return ["systemctl", "set-property", "zfsilod.service", f"IPAddressAllow={' '.join(addresses)}"]


def blocked(name: str) -> list[str]:
    """Return the addresses of a server that the daemon's unit does not allow."""
    argv = ["systemctl", "show", "--value", "--property=IPAddressAllow", "zfsilod.service"]
    allowed = Runner()(argv, timeout_s=TOOL_S, ok=ANY).stdout.split()
    return outside(resolved(name), allowed) if allowed else []


def outside(addresses: list[str], inside: Sequence[str] = PRIVATE) -> list[str]:
    """Return the addresses that are in none of these networks."""
    networks = [ipaddress.ip_network(text) for text in inside]
    unique = dict.fromkeys(ipaddress.ip_address(text.partition("%")[0]) for text in addresses)
    return [
        str(address) for address in unique if not any(address in network for network in networks)
    ]


def name_servers(path: Path) -> list[str]:
    """Return the name servers of a resolv.conf(5), as far as they are addresses."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    entries = (line.split() for line in lines)
    named = [words[1] for words in entries if words[:1] == ["nameserver"] and len(words) > 1]
    return list(filter(_is_address, named))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def resolved(name: str) -> list[str]:
    """Return the addresses of a name; none when it does not resolve, which connecting reports."""
    try:
        results = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(address[0]) for *_kind, address in results))

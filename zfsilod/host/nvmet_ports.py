"""The ports of the kernel's NVMe target, which all subsystems share.

A port is an address at which the target listens, from its first link to a subsystem to its last
one. zfsilo makes a port that is missing, under a number of its own range, and removes it again; a
port of another program gets a link, and is never changed or removed. A port serves either TLS only
or no TLS: a subsystem with TLS is never linked to one of the other kind.
"""

from __future__ import annotations

import os

from zfsilod.host.portals import canonical, listen_at_each, served
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, ResourceExhausted
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import check_portal, is_portal, join_portal, overlap, portal_parts
from zfsilod.storage.paths import exists, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.host.configfs import Configfs
    from zfsilod.storage.paths import AnyPath

OWN = range(0x7A00, 0x7B00)  # numbers of zfsilo's ports, of the 65536 that the kernel has
ESTABLISHED = "01"  # include/net/tcp_states.h
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound
REQUIRED = "required"  # addr_treq of a port that serves TLS only
TLS = {"addr_tsas": "tls1.3", "addr_treq": REQUIRED}  # in the order that the kernel takes


class NvmetPorts:
    """The ports below one configfs root, and the connections to them."""

    def __init__(self, fs: Configfs, proc: AnyPath = "/proc") -> None:
        self._fs = fs
        self._proc = os.fspath(proc)

    def portals(self, target: str) -> frozenset[str]:
        """Return the portals of the ports that are linked to a subsystem."""
        return frozenset(map(self._portal, self._ports_of(target)))

    def has(self, target: str, portals: Iterable[str], *, tls: bool = False) -> bool:
        """Tell whether a subsystem is linked to the ports of these portals, and to no other.

        All require TLS, or none does. A portal whose address this host does not have now may be
        linked or not; one that clients are still connected to may be linked.
        """
        wanted, ports = frozenset(canonical(portals)), self._ports_of(target)
        if any(self._is_tls(port) != tls for port in ports):
            return False
        linked = frozenset(map(self._portal, ports))
        others = linked - wanted
        return served(wanted) <= linked and all(self._lingers(one, wanted) for one in others)

    def requires_tls(self, target: str) -> bool:
        """Tell whether a subsystem is linked to a port that requires TLS."""
        return any(map(self._is_tls, self._ports_of(target)))

    def _ports_of(self, target: str) -> list[str]:
        """Return the ports that are linked to a subsystem."""
        return [port for port in self._all() if target in self._linked(port)]

    def _is_tls(self, port: str) -> bool:
        return all(self._fs.read(f"ports/{port}/{name}") == value for name, value in TLS.items())

    def _lingers(self, portal: str, wanted: frozenset[str]) -> bool:
        """Tell whether a former portal stays: its clients are to connect to the new ones first.

        A client that is refused at a port gives its controller up, and the disk with the last one.
        """
        if not portal or not wanted or any(overlap(portal, one) for one in wanted):
            return False
        address, port = portal_parts(portal)
        if address in WILDCARDS and any(portal_parts(one)[1] == port for one in wanted):
            return False  # the clients of the other address would be taken for its own
        forms = socket_names(portal)
        return any(
            state == ESTABLISHED and any(local.endswith(form) for form in forms)
            for table in ("tcp", "tcp6")
            for local, state in self._sockets(table)
        )

    def is_unused(self, target: str) -> bool:
        """Tell whether no port is linked to a subsystem, and none of zfsilo is without a link."""
        return not any(
            target in linked or (not linked and _is_own(port))
            for port in self._all()
            for linked in (self._linked(port),)
        )

    def link(self, target: str, portals: Iterable[str], *, tls: bool = False) -> None:
        """Link a subsystem to the ports of these portals, and to no other.

        A portal whose address this host does not have is left out, if there is another one: the
        loss of a network must not end the service by the others. A former one that clients are
        connected to stays; one of the other kind never does.
        """
        wanted = frozenset(canonical(portals))  # all are checked first
        for port in self._all():
            portal = self._portal(port)
            if target not in self._linked(port) or portal in wanted:
                continue
            if not self._lingers(portal, wanted):
                self._unlink(port, target)
        self._unlink_other_kind(frozenset((target,)), tls=tls)

        def open_at(portal: str) -> None:
            self._link(self._port(portal, tls=tls), (target,))

        listen_at_each(_in_order(served(wanted)), open_at, _key(tls=tls))

    def _link(self, port: str, targets: Iterable[str]) -> None:
        for target in targets:
            self._fs.link(f"ports/{port}/subsystems/{target}", f"subsystems/{target}")

    def _unlink_other_kind(self, targets: frozenset[str], *, tls: bool) -> None:
        """Remove the links to ports with TLS, or without, also while clients are connected."""
        for port in self._all():
            linked = targets & self._linked(port)
            if linked and self._is_tls(port) != tls:
                for target in sorted(linked):
                    self._unlink(port, target)

    def link_all(
        self, targets: Iterable[str], portals: Iterable[str], *, tls: bool = False
    ) -> None:
        """Link subsystems to the ports of these portals, as close together as the kernel can.

        The first link to a port makes the target listen there. A client of a subsystem that is not
        linked yet is refused for good, so nothing else is done until all are linked.
        """
        wanted = frozenset(targets)
        served_now = _in_order(served(frozenset(canonical(portals))))
        self._unlink_other_kind(wanted, tls=tls)
        ports = {one: self._port(one, tls=tls) for one in served_now}
        missing = {port: sorted(wanted - self._linked(port)) for port in ports.values()}

        def open_at(portal: str) -> None:
            self._link(ports[portal], missing[ports[portal]])

        listen_at_each(served_now, open_at, _key(tls=tls))

    def unlink(self, target: str) -> None:
        """Remove the links to a subsystem, which ends its controllers, and ports without links."""
        for port in self._all():
            if target in self._linked(port):
                self._unlink(port, target)
            else:
                self._remove_unused(port)

    def has_connections(self, portals: Iterable[str]) -> bool:
        """Tell whether any client may be connected to one of these portals: proc_net_tcp(5).

        Nothing tells it of a port of another kind than TCP, which another program has linked: "".
        """
        known = set(portals)
        if "" in known:
            return True
        ports = {portal_parts(portal)[1] for portal in known}
        return bool(ports) and any(
            state == ESTABLISHED and int(local.rpartition(":")[2], 16) in ports
            for table in ("tcp", "tcp6")
            for local, state in self._sockets(table)
        )

    def _sockets(self, table: str) -> list[tuple[str, str]]:
        """Return local address and state of each TCP socket. Raises OSError."""
        path = f"{self._proc}/self/net/{table}"
        if table == "tcp6" and not exists(path):  # a kernel without IPv6
            return []
        rows = [line.split() for line in read_text(path).splitlines()[1:]]
        return [(row[1], row[3]) for row in rows]

    def _all(self) -> list[str]:
        return self._fs.names("ports")

    def _linked(self, port: str) -> frozenset[str]:
        return frozenset(self._fs.links(f"ports/{port}/subsystems"))

    def _portal(self, port: str) -> str:
        """Return the portal of a TCP port; "" of another one, and of a half-made one."""
        if self._fs.read(f"ports/{port}/addr_trtype") != "tcp":
            return ""
        address = self._fs.read(f"ports/{port}/addr_traddr") or ""
        service = self._fs.read(f"ports/{port}/addr_trsvcid") or ""
        portal = join_portal(address, service)
        return check_portal(portal) if is_portal(portal) else ""

    def _port(self, portal: str, *, tls: bool) -> str:
        """Return the number of the port of a portal, which is made if there is none.

        Of several, such as one that another program has restored, that with a link listens.
        """
        same = [port for port in self._all() if self._portal(port) == portal]
        for port in sorted(same, key=lambda port: not self._linked(port)):
            is_tls = self._fs.read(f"ports/{port}/addr_treq") == REQUIRED
            if is_tls == tls and (self._is_tls(port) or not tls):
                return port
            self._remove_unused(port)  # made before a change of the configuration
            if self._portal(port) == portal:
                raise Conflict(
                    f"port {port} of the kernel's NVMe target at {portal} "
                    f"{'requires' if is_tls else 'does not require'} TLS, and has other "
                    "subsystems: set another server.nvme_tls_port, or other addresses in "
                    "server.nvme_portals",
                    portal=portal,
                )
        present = self._all()
        for port in map(str, OWN):
            if port not in present or (not self._portal(port) and not self._linked(port)):
                self._make(port, portal, tls=tls)
                return port
        raise ResourceExhausted(f"zfsilo has {len(OWN)} NVMe ports, which is the limit")

    def _make(self, port: str, portal: str, *, tls: bool) -> None:
        """Make a port; its portal comes last, so that one with a portal is of the right kind."""
        address, service = portal_parts(portal)
        self._fs.remove(f"ports/{port}")  # a half-made one may be of the other kind
        self._fs.make(f"ports/{port}")
        self._fs.write(f"ports/{port}/addr_trtype", "tcp")
        if tls:
            self._require_tls(port)
        for name, value in (
            ("addr_adrfam", "ipv6" if ":" in address else "ipv4"),
            ("addr_traddr", address),
            ("addr_trsvcid", str(service)),
        ):
            self._fs.write(f"ports/{port}/{name}", value)

    def _require_tls(self, port: str) -> None:
        try:
            for name, value in TLS.items():
                self._fs.write(f"ports/{port}/{name}", value)
        except FailedPrecondition as error:
            raise _no_tls() from error
        if not self._is_tls(port):
            raise _no_tls()

    def _unlink(self, port: str, target: str) -> None:
        self._fs.unlink(f"ports/{port}/subsystems/{target}")
        self._remove_unused(port)

    def _remove_unused(self, port: str) -> None:
        if not _is_own(port) or self._linked(port):
            return
        try:
            self._fs.remove(f"ports/{port}")
        except Busy:
            return  # another program has linked a subsystem meanwhile


def socket_names(portal: str) -> tuple[str, ...]:
    """Return the ends of the local addresses of connections to a portal: proc_net_tcp(5)."""
    from zfsilod.model.lean import socket

    address, port = portal_parts(portal)
    bare = address.partition("%")[0]
    raw = socket.inet_pton(socket.AF_INET6 if ":" in bare else socket.AF_INET, bare)
    words = [int.from_bytes(raw[start : start + 4], "little") for start in range(0, len(raw), 4)]
    if address in WILDCARDS:
        return (f":{port:04X}",)
    return (f"{''.join(f'{word:08X}' for word in words)}:{port:04X}",)


def _in_order(portals: Iterable[str]) -> list[str]:
    """Return portals, IPv4 first, as for iSCSI: a wildcard of both families is one socket."""
    return sorted(portals, key=lambda portal: (portal.startswith("["), portal))


def _key(*, tls: bool) -> str:
    """Return the key of the configuration that a portal comes from."""
    return "server.nvme_tls_port" if tls else "server.nvme_portals"


def _is_own(port: str) -> bool:
    return port.isdecimal() and int(port) in OWN


def _no_tls() -> FailedPrecondition:
    """Return the error for a kernel whose NVMe target has no TLS."""
    return FailedPrecondition(
        "this kernel's NVMe target has no TLS: it needs CONFIG_NVME_TARGET_TCP_TLS",
        reason="NO_NVME_TLS",
    )

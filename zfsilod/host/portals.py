"""Addresses and ports of servers: which of them this host has, and which of them answer."""

from __future__ import annotations

import errno
import time

from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import check_portal, portal_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ANSWER_S = 1.0
ANSWER_KEPT_S = 10


class Answers:
    """Which portals answer, remembered for some seconds: probes ask often."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, bool]] = {}  # when a portal was tried, and how

    def __call__(self, portal: str) -> bool:
        """Tell whether a portal accepts connections, or did so in the last seconds."""
        now = time.monotonic()
        at, answered = self._known.get(portal, (-ANSWER_KEPT_S, False))
        if now - at >= ANSWER_KEPT_S:
            answered = accepts_connections(portal)
            self._known[portal] = (now, answered)
        return answered


def accepts_connections(portal: str) -> bool:
    """Tell whether a portal accepts a TCP connection within a second."""
    import socket  # in a worker only for a further path

    try:
        socket.create_connection(portal_parts(portal), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def listen_at_each(portals: Iterable[str], open_at: Callable[[str], None], key: str) -> None:
    """Let a target listen at each of these portals where that can be; raise for the others then.

    `key`: of the configuration that names them. Raises FailedPrecondition (PORTAL_IN_USE,
    NO_ADDRESS), and what `open_at` raises.
    """
    failures = []
    for portal in portals:
        try:
            open_at(portal)
        except FailedPrecondition as error:
            failures.append(_explained(error, portal, key))
    if failures:
        raise failures[0]


def _explained(error: FailedPrecondition, portal: str, key: str) -> FailedPrecondition:
    """Return why the kernel does not listen at a portal, and what to do."""
    number, (address, port) = error.facts.get("errno", ""), portal_parts(portal)
    if number == errno.errorcode[errno.EADDRINUSE]:
        return FailedPrecondition(
            f"something else listens at port {port} of {address}, so targets cannot: stop it "
            f"(`ss -Hltnp sport = {port}` names a program), or change {key}",
            reason="PORTAL_IN_USE",
            portal=portal,
        )
    if number and not has_address(portal):
        return FailedPrecondition(
            f"this host does not have the address {address}, at which targets are to listen: give "
            f"it to an interface (`ip -brief address` lists them), or change {key}",
            reason="NO_ADDRESS",
            portal=portal,
        )
    return error


def canonical(portals: Iterable[str]) -> list[str]:
    """Return portals in the form in which they are compared, each once, in their order."""
    return list(dict.fromkeys(map(check_portal, portals)))


def served(portals: frozenset[str]) -> frozenset[str]:
    """Return the portals whose addresses this host has; all of them when it has none."""
    if len(portals) < 2:
        return portals
    return frozenset(filter(has_address, portals)) or portals


def has_address(portal: str) -> bool:
    """Tell whether this host has the address of a portal: bind(2). Raises Unavailable.

    The scope of a link-local address is the name of an interface, or its number: RFC 4007, 11.
    """
    from zfsilod.model.lean import socket

    host, _port = portal_parts(portal)
    address, _percent, scope = host.partition("%")
    unknown = Unavailable(f"cannot tell whether this host has the address {host}")
    try:
        link = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope) if scope else 0
    except OSError:
        return False  # no such interface, at the moment
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        probe = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        if family == socket.AF_INET6 and error.errno == errno.EAFNOSUPPORT:
            return False  # a kernel without IPv6
        raise unknown from error
    try:
        probe.bind((address, 0, 0, link) if family == socket.AF_INET6 else (address, 0))
    except OSError as error:
        # EINVAL: a link-local address without its interface.
        if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL):
            return False
        raise unknown from error
    finally:
        probe.close()
    return True

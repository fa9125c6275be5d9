"""Steps on the initiator of a client: node records, sessions, their secrets, the disk's size."""

from __future__ import annotations

from zfsilod.engine.step import HostStep, OneWay
from zfsilod.host.transports import session_adapter, sessions
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Resources
from zfsilod.model.sizes import show_round

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.host.transport_protocols import SessionAdapter
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.record import Pairs

ENDING_S = 5  # less than client.lost_session_s may be: a way down never waits as long


class Node(HostStep, tag="Node", part="INITIATOR"):
    """The initiator has a record of the target, with the secrets and `node.startup=manual`."""

    final = (False,)
    target: str
    portals: tuple[str, ...]
    secret: str
    server: str = ""  # that named the target; "": 0.1.0
    lost_session_s: int = 0  # as LossWait.seconds of sessions that log in from now on

    def probe(self, host: HostAdapters) -> bool:
        return host.iscsi.has_node(
            self.target,
            self.portals,
            chap=host.chap(self.secret),
            server=self.server,
            lost_session_s=self.lost_session_s,
        )

    def do(self, host: HostAdapters) -> None:
        host.iscsi.add_node(
            self.target,
            self.portals,
            chap=host.chap(self.secret),
            server=self.server,
            lost_session_s=self.lost_session_s,
        )

    def undo(self, host: HostAdapters) -> None:
        host.iscsi.remove_node(self.target)

    def fact(self) -> str:
        return f"node record of {self.target} exists"

    def describe_do(self) -> str:
        return f"create node record of {self.target} at {', '.join(self.portals)}"

    def describe_undo(self) -> str:
        return f"remove node record of {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,), secrets=(self.secret,))


class NodeSecrets(HostStep, tag="NodeSecrets", part="INITIATOR"):
    """The node record of the target has these secrets and portals, no longer the previous ones."""

    target: str
    portals: tuple[str, ...]
    secret: str
    previous: str
    server: str = ""
    lost_session_s: int = 0
    previous_portals: tuple[str, ...] = ()  # (): the same

    def probe(self, host: HostAdapters) -> bool:
        return host.iscsi.has_node(
            self.target,
            self.portals,
            chap=host.chap(self.secret),
            server=self.server,
            lost_session_s=self.lost_session_s,
        )

    def do(self, host: HostAdapters) -> None:
        host.iscsi.add_node(
            self.target,
            self.portals,
            chap=host.chap(self.secret),
            server=self.server,
            lost_session_s=self.lost_session_s,
        )

    def undo(self, host: HostAdapters) -> None:
        host.iscsi.add_node(
            self.target,
            self.previous_portals or self.portals,
            chap=host.chap(self.previous),
            server=self.server,
            lost_session_s=self.lost_session_s,
        )

    def fact(self) -> str:
        return f"node record of {self.target} has the new {self._what()}"

    def describe_do(self) -> str:
        return f"set new {self._what()} in the node record of {self.target}"

    def describe_undo(self) -> str:
        return f"restore the previous {self._what()} in the node record of {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,), secrets=(self.secret, self.previous))

    def _what(self) -> str:
        if not self.previous_portals:
            return "secrets"
        return "portals" if self.secret == self.previous else "secrets and portals"


class SessionSecrets(OneWay, tag="SessionSecrets", part="INITIATOR"):
    """Live sessions log in with these secrets when their connection breaks.

    One-way: the server accepts the new secrets only.
    """

    volatile = True
    final = (True,)
    atomic = False
    secrets: Pairs  # targets, and the name of the secrets of each

    def probe(self, host: HostAdapters) -> bool:
        return all(adapter.has_session_secrets(chaps) for adapter, chaps in self._parts(host))

    def do(self, host: HostAdapters) -> None:
        for adapter, chaps in self._parts(host):
            adapter.set_session_secrets(chaps)

    def fact(self) -> str:
        return f"sessions with {self._targets()} have the new secrets"

    def describe_do(self) -> str:
        return f"set new secrets in the sessions with {self._targets()}"

    def resources(self) -> Resources:
        return Resources(
            targets=tuple(target for target, _name in self.secrets),
            secrets=tuple(name for _target, name in self.secrets),
        )

    def _parts(self, host: HostAdapters) -> list[tuple[SessionAdapter, dict[str, Chap]]]:
        """Return the secrets of each transport with its adapter."""
        chaps = {target: host.chap(name) for target, name in self.secrets}
        parts = [
            (adapter, {target: chaps[target] for target in chaps if _is_of(host, target, adapter)})
            for adapter in sessions(host)
        ]
        return [(adapter, own) for adapter, own in parts if own]

    def _targets(self) -> str:
        return ", ".join(target for target, _name in self.secrets)


class NoNode(OneWay, tag="NoNode", part="INITIATOR"):
    """The initiator has no record of the target. For orphans only.

    One-way: the secrets are deleted with the record.
    """

    final = (True,)
    atomic = False
    target: str

    def probe(self, host: HostAdapters) -> bool:
        return self.target not in host.iscsi.nodes(self.target)

    def do(self, host: HostAdapters) -> None:
        host.iscsi.remove_node(self.target)

    def fact(self) -> str:
        return f"no node record of {self.target} exists"

    def describe_do(self) -> str:
        return f"remove orphaned node record of {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


class Session(HostStep, tag="Session", part="INITIATOR"):
    """A session with the target is logged in, and its disk has the volume's serial."""

    volatile = True
    final = (False,)
    disk: Disk

    def probe(self, host: HostAdapters) -> bool:
        return host.iscsi.has_session(self.disk)

    def do(self, host: HostAdapters) -> None:
        host.iscsi.login(self.disk)

    def undo(self, host: HostAdapters) -> None:
        host.iscsi.logout(self.disk)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not host.iscsi.has_any_session(self.disk)

    def fact(self) -> str:
        return f"logged in to {self.disk.target}"

    def describe_do(self) -> str:
        return f"log in to {self.disk.target}"

    def describe_undo(self) -> str:
        return f"log out of {self.disk.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


class SessionPortal(OneWay, tag="SessionPortal", part="INITIATOR"):
    """A lost session is recovered at a present portal of the server; a live one stays where it is.

    Disk and mounts of the session stay. One-way: nothing answers at the former portal.
    """

    volatile = True
    disk: Disk
    portals: tuple[str, ...]

    def probe(self, host: HostAdapters) -> bool:
        return host.iscsi.follows(self.disk, self.portals)

    def do(self, host: HostAdapters) -> None:
        host.iscsi.follow(self.disk, self.portals)

    def fact(self) -> str:
        return f"session with {self.disk.target} is not lost at a former portal"

    def describe_do(self) -> str:
        return f"recover the session with {self.disk.target} at {', '.join(self.portals)}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


class LossWait(HostStep, tag="LossWait", part="INITIATOR"):
    """I/O waits this long for a lost session before it fails.

    The first step of a path down ends the waiting, so that no later one hangs in it.
    """

    volatile = True
    disk: Disk
    seconds: int  # 0: without limit, until the session is back or is logged out

    def probe(self, host: HostAdapters) -> bool:
        return session_adapter(host, self.disk.target).has_loss_wait(self.disk, self.seconds)

    def do(self, host: HostAdapters) -> None:
        session_adapter(host, self.disk.target).set_loss_wait(self.disk, self.seconds)

    def undo(self, host: HostAdapters) -> None:
        session_adapter(host, self.disk.target).set_loss_wait(self.disk, ENDING_S)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not session_adapter(host, self.disk.target).has_any_session(self.disk)

    def fact(self) -> str:
        return f"pending I/O waits {self._time()} for a lost session"

    def describe_do(self) -> str:
        return f"let I/O to {self.disk.target} wait {self._time()} for a lost session"

    def describe_undo(self) -> str:
        return f"let I/O to {self.disk.target} fail {ENDING_S} s after its session is lost"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))

    def _time(self) -> str:
        return f"{self.seconds} s" if self.seconds else "without limit"


class DiskResponsive(OneWay, tag="Answering", part="INITIATOR"):
    """I/O to the disk is answered, if only by an error; or there is no session with the target.

    The first step of a detach path. A disk that does not answer loses its session, so that pending
    I/O fails now. One-way: logging in is the task of Session.
    """

    volatile = True
    final = (True,)
    atomic = False
    disk: Disk

    def probe(self, host: HostAdapters) -> bool:
        return session_adapter(host, self.disk.target).is_responsive(self.disk)

    def do(self, host: HostAdapters) -> None:
        session_adapter(host, self.disk.target).drop(self.disk)

    def fact(self) -> str:
        return f"the disk of {self.disk.target} answers"

    def describe_do(self) -> str:
        return f"check that the disk of {self.disk.target} answers, or drop its session"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


class SessionDropped(OneWay, tag="Dropped", part="INITIATOR"):
    """There is no session with the target, even if its disk was in use: pending I/O fails now.

    One-way: the processes that used the disk have lost it.
    """

    volatile = True
    final = (True,)
    disk: Disk

    def probe(self, host: HostAdapters) -> bool:
        return not session_adapter(host, self.disk.target).has_any_session(self.disk)

    def do(self, host: HostAdapters) -> None:
        session_adapter(host, self.disk.target).drop(self.disk)

    def fact(self) -> str:
        return f"no session with {self.disk.target} exists"

    def describe_do(self) -> str:
        return f"drop every session with {self.disk.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


class DiskSize(OneWay, tag="DiskSize", part="INITIATOR"):
    """The kernel sees the disk at its size. One-way: the kernel keeps the new size."""

    volatile = True
    sticky = True
    disk: Disk

    def probe(self, host: HostAdapters) -> bool:
        return session_adapter(host, self.disk.target).has_size(self.disk)

    def do(self, host: HostAdapters) -> None:
        session_adapter(host, self.disk.target).rescan(self.disk)

    def fact(self) -> str:
        return f"disk has {show_round(self.disk.size_bytes)}"

    def describe_do(self) -> str:
        size = show_round(self.disk.size_bytes)
        return f"rescan the disk of {self.disk.target} until it has {size}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


def _is_of(host: HostAdapters, target: str, adapter: SessionAdapter) -> bool:
    return session_adapter(host, target) is adapter

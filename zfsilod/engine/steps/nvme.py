"""Steps on the NVMe/TCP host of a client: controllers, and the size of their requests."""

from __future__ import annotations

from zfsilod.engine.step import HostStep, OneWay
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import Disk


class Controller(HostStep, tag="Controller", part="INITIATOR"):
    """At least one controller of the subsystem is live, and its disk has the volume's identity.

    Its secrets are only in the store and in the kernel: no file of this host has them. With `tls`
    the kernel's keyring has the PSK.
    """

    volatile = True
    final = (False,)
    disk: Disk
    portals: tuple[str, ...]
    secret: str
    server: str  # that named the subsystem
    lost_session_s: int = 0  # as LossWait.seconds of a controller that is made now
    tls: bool = False

    @property
    def target(self) -> str:
        """The subsystem."""
        return self.disk.target

    def probe(self, host: HostAdapters) -> bool:
        return host.nvme.has_controller(
            self.disk,
            self.portals,
            server=self.server,
            tls=host.chap(self.secret) if self.tls else None,
        )

    def do(self, host: HostAdapters) -> None:
        host.nvme.connect(
            self.disk,
            self.portals,
            chap=host.chap(self.secret),
            server=self.server,
            lost_session_s=self.lost_session_s,
        )

    def undo(self, host: HostAdapters) -> None:
        host.nvme.logout(self.disk)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not host.nvme.has_any_session(self.disk)

    def fact(self) -> str:
        return f"connected to {self.disk.target}{' with TLS' if self.tls else ''}"

    def describe_do(self) -> str:
        with_tls = " with TLS" if self.tls else ""
        return f"connect to {self.disk.target} at {', '.join(self.portals)}{with_tls}"

    def describe_undo(self) -> str:
        return f"disconnect from {self.disk.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,), secrets=(self.secret,))


class ControllerPortal(OneWay, tag="ControllerPortal", part="INITIATOR"):
    """Each portal of the server that answers has a controller: a path of one disk.

    One at a former portal is removed when another one has joined the disk, so that disk and mounts
    stay. One-way: a further path does no harm, and a former portal does not answer for long.
    """

    volatile = True
    disk: Disk
    portals: tuple[str, ...]
    secret: str
    server: str
    lost_session_s: int = 0

    @property
    def target(self) -> str:
        """The subsystem."""
        return self.disk.target

    def probe(self, host: HostAdapters) -> bool:
        return host.nvme.follows(self.disk, self.portals)

    def do(self, host: HostAdapters) -> None:
        host.nvme.connect(
            self.disk,
            self.portals,
            chap=host.chap(self.secret),
            server=self.server,
            lost_session_s=self.lost_session_s,
        )

    def fact(self) -> str:
        return f"{self.disk.target} is connected at each portal that answers"

    def describe_do(self) -> str:
        return f"connect to {self.disk.target} at each of {', '.join(self.portals)}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,), secrets=(self.secret,))


class QueueLimit(OneWay, tag="QueueLimit", part="INITIATOR"):
    """No request to the disk is larger than the server's target can take, as a connect has set it.

    One-way: the limit goes with the controller.
    """

    volatile = True
    disk: Disk

    def probe(self, host: HostAdapters) -> bool:
        return host.nvme.has_queue_limit(self.disk)

    def do(self, host: HostAdapters) -> None:
        host.nvme.set_queue_limit(self.disk)

    def fact(self) -> str:
        return "requests have at most 1 MiB"

    def describe_do(self) -> str:
        return f"limit the requests to the disk of {self.disk.target} to 1 MiB"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))

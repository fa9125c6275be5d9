"""Steps on the export of a volume by a target of the kernel, except the access of clients.

Target, Portals and those on all paths serve every transport: host/transports.py.
"""

from __future__ import annotations

from zfsilod.engine.step import Guard, HostStep, OneWay
from zfsilod.host.transports import export_paths, target_adapter
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.host_facts import CONTROLLER_IDS, NO_LIMITS
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import transport_of
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import ExportPath


class Backstore(HostStep, tag="Backstore", part="TARGET"):
    """The zvol is a backstore of the kernel's target, with the volume's serial."""

    volatile = True
    name: str
    dataset: str
    serial: str

    def probe(self, host: HostAdapters) -> bool:
        return host.lio.has_backstore(self.name, dataset=self.dataset, serial=self.serial)

    def do(self, host: HostAdapters) -> None:
        host.lio.add_backstore(self.name, dataset=self.dataset, serial=self.serial)

    def undo(self, host: HostAdapters) -> None:
        host.lio.remove_backstore(self.name)

    def safe_untried(self, host: HostAdapters) -> bool:
        return self.name not in host.lio.list_backstores()

    def fact(self) -> str:
        return f"backstore {self.name} exists"

    def describe_do(self) -> str:
        return f"create backstore {self.name} for {self.dataset}"

    def describe_undo(self) -> str:
        return f"remove backstore {self.name}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,), volumes=(self.serial,))


class Target(HostStep, tag="Target", part="TARGET"):
    """The target exists, requires authentication, and refuses initiators without an ACL."""

    volatile = True
    target: str

    def probe(self, host: HostAdapters) -> bool:
        return target_adapter(host, self.target).has_target(self.target)

    def do(self, host: HostAdapters) -> None:
        target_adapter(host, self.target).add_target(self.target)

    def undo(self, host: HostAdapters) -> None:
        # A rollback has left the portals: Portals.revert.
        target_adapter(host, self.target).remove_portals(self.target)
        target_adapter(host, self.target).remove_target(self.target)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not target_adapter(host, self.target).exists(self.target)

    def fact(self) -> str:
        return f"target {self.target} exists"

    def describe_do(self) -> str:
        return f"create target {self.target}"

    def describe_undo(self) -> str:
        return f"remove target {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


class Lun(HostStep, tag="Lun", part="TARGET"):
    """The backstore is LUN 0 of the target."""

    volatile = True
    target: str
    backstore: str

    def probe(self, host: HostAdapters) -> bool:
        return host.lio.has_lun(self.target, self.backstore)

    def do(self, host: HostAdapters) -> None:
        host.lio.add_lun(self.target, self.backstore)

    def undo(self, host: HostAdapters) -> None:
        host.lio.remove_lun(self.target)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not host.lio.exists(self.target)

    def fact(self) -> str:
        return "LUN 0 is the backstore"

    def describe_do(self) -> str:
        return f"add backstore {self.backstore} as LUN 0 to target {self.target}"

    def describe_undo(self) -> str:
        return f"remove LUN 0 from target {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


class Namespace(HostStep, tag="Namespace", part="TARGET"):
    """The zvol is namespace 1 of an NVMe subsystem, with the volume's UUID and NGUID."""

    volatile = True
    target: str
    dataset: str
    serial: str

    def probe(self, host: HostAdapters) -> bool:
        return host.nvmet.has_namespace(self.target, dataset=self.dataset, uid=self.serial)

    def do(self, host: HostAdapters) -> None:
        host.nvmet.add_namespace(self.target, dataset=self.dataset, uid=self.serial)

    def undo(self, host: HostAdapters) -> None:
        host.nvmet.remove_namespace(self.target)

    def safe_untried(self, host: HostAdapters) -> bool:
        return host.nvmet.is_empty(self.target)

    def fact(self) -> str:
        return "namespace 1 is the zvol"

    def describe_do(self) -> str:
        return f"add {self.dataset} as namespace 1 to target {self.target}"

    def describe_undo(self) -> str:
        return f"remove namespace 1 from target {self.target}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,), volumes=(self.serial,), targets=(self.target,))


class ControllerIds(HostStep, tag="ControllerIds", part="TARGET"):
    """The subsystem gives these ids to controllers: those of this server, `first` to `last`.

    A client refuses a second controller with the id of another one of the same subsystem, which
    another server may have during a move.
    """

    volatile = True
    target: str
    first: int
    last: int

    def probe(self, host: HostAdapters) -> bool:
        return host.nvmet.has_controller_ids(self.target, self.first, self.last)

    def do(self, host: HostAdapters) -> None:
        host.nvmet.set_controller_ids(self.target, self.first, self.last)

    def undo(self, host: HostAdapters) -> None:
        if host.nvmet.exists(self.target):
            host.nvmet.set_controller_ids(self.target, *CONTROLLER_IDS)

    def revert(self, _host: HostAdapters) -> dict[str, str]:
        """Leave the range: it is the configured one, and goes with a new target."""
        return {}

    def safe_untried(self, _host: HostAdapters) -> bool:
        return True  # a rollback changes nothing

    def fact(self) -> str:
        return f"target gives the controller ids {self.first} to {self.last}"

    def describe_do(self) -> str:
        return f"let target {self.target} give the controller ids {self.first} to {self.last}"

    def describe_undo(self) -> str:
        return f"let target {self.target} give all controller ids"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


def shown_portals(portals: tuple[str, ...], *, tls: bool) -> str:
    """Return portals for people."""
    return f"{', '.join(portals)}{' with TLS' if tls else ''}"


class Listening:
    """The portals of a target, with TLS or without."""

    target: str
    portals: tuple[str, ...]
    tls: bool

    def listens(self, host: HostAdapters) -> bool:
        """Tell whether the target listens there, and nowhere else."""
        if self.tls:
            return host.nvmet.has_portals(self.target, self.portals, tls=True)
        return target_adapter(host, self.target).has_portals(self.target, self.portals)

    def listen(self, host: HostAdapters) -> None:
        """Let the target listen there, and nowhere else."""
        if self.tls:
            host.nvmet.add_portals(self.target, self.portals, tls=True)
        else:
            target_adapter(host, self.target).add_portals(self.target, self.portals)

    @property
    def shown(self) -> str:
        """The portals, for people."""
        return shown_portals(self.portals, tls=self.tls)


class Portals(Listening, HostStep, tag="Portals", part="TARGET"):
    """The target listens at these addresses ("10.0.0.1:3260", "[fd00::1]:3260") and no other."""

    volatile = True
    target: str
    portals: tuple[str, ...]
    tls: bool = False  # each requires TLS; over NVMe only

    def probe(self, host: HostAdapters) -> bool:
        return self.listens(host)

    def do(self, host: HostAdapters) -> None:
        self.listen(host)

    def undo(self, host: HostAdapters) -> None:
        target_adapter(host, self.target).remove_portals(self.target)

    def revert(self, _host: HostAdapters) -> dict[str, str]:
        """Close nothing: a target that was there before may have clients at its other portals.

        A new target is removed with its portals.
        """
        return {}

    def safe_untried(self, _host: HostAdapters) -> bool:
        return True  # a rollback changes nothing

    def fact(self) -> str:
        return f"target listens at {self.shown}"

    def describe_do(self) -> str:
        return f"listen at {self.shown} for target {self.target}"

    def describe_undo(self) -> str:
        return f"stop listening for target {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


class AllPortals(OneWay, tag="AllPortals", part="TARGET"):
    """The subsystems of several volumes listen at these addresses, from one moment on.

    The kernel listens at a shared port from the first link on, and refuses the clients of the
    subsystems that have none yet. They give their disks up then: nvmf_should_reconnect() in
    drivers/nvme/host/fabrics.c. One-way: it is no more than what the publications require.
    """

    volatile = True
    targets: tuple[str, ...]
    portals: tuple[str, ...]
    tls: bool = False  # as of Portals

    def probe(self, host: HostAdapters) -> bool:
        return all(
            host.nvmet.has_portals(target, self.portals, tls=self.tls) for target in self.targets
        )

    def do(self, host: HostAdapters) -> None:
        host.nvmet.add_portals_to_all(self.targets, self.portals, tls=self.tls)

    def fact(self) -> str:
        return f"the targets of {len(self.targets)} volumes listen at {self._shown}"

    def describe_do(self) -> str:
        return f"listen at {self._shown} for {len(self.targets)} targets"

    @property
    def _shown(self) -> str:
        return shown_portals(self.portals, tls=self.tls)

    def resources(self) -> Resources:
        return Resources(targets=self.targets)


class Reopened(Listening, OneWay, tag="Reopened", part="TARGET"):
    """The target, as far as it exists, listens for the clients that are left after a fence.

    Where the end of one client's access closes the ports for all, a killed worker may leave them
    closed. One-way: it is no more than what the publications of the others require.
    """

    volatile = True
    target: str
    portals: tuple[str, ...]
    tls: bool = False

    def probe(self, host: HostAdapters) -> bool:
        if not target_adapter(host, self.target).list_acls(self.target):
            return True
        return self.listens(host)

    def do(self, host: HostAdapters) -> None:
        self.listen(host)

    def fact(self) -> str:
        return f"target listens at {self.shown} for its other clients"

    def describe_do(self) -> str:
        return f"listen at {self.shown} for the other clients of target {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


class Enabled(HostStep, tag="Enabled", part="TARGET"):
    """The target is enabled: it answers logins."""

    volatile = True
    target: str

    def probe(self, host: HostAdapters) -> bool:
        return host.lio.is_enabled(self.target)

    def do(self, host: HostAdapters) -> None:
        host.lio.enable(self.target)

    def undo(self, host: HostAdapters) -> None:
        host.lio.disable(self.target)

    def safe_untried(self, _host: HostAdapters) -> bool:
        return True  # it is not enabled, wholly

    def fact(self) -> str:
        return "target is enabled"

    def describe_do(self) -> str:
        return f"enable target {self.target}"

    def describe_undo(self) -> str:
        return f"disable target {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


class NoExport(OneWay, tag="NoExport", part="TARGET"):
    """Nothing of an export exists: target, ACLs, LUN, backstore, limits. For orphans only.

    One-way: without a record there is nothing to create it from.
    """

    volatile = True
    final = (True,)
    atomic = False
    target: str
    backstore: str  # "": it stays

    def probe(self, host: HostAdapters) -> bool:
        if target_adapter(host, self.target).exists(self.target):
            return False
        return self.backstore not in host.lio.list_backstores()

    def do(self, host: HostAdapters) -> None:
        if self.backstore:  # it tells the device that has the limits
            host.limits.set_limits(self.backstore, NO_LIMITS)
        if transport_of(self.target) == "ISCSI":
            host.lio.remove_export(self.target, self.backstore or None)
            return
        target_adapter(host, self.target).remove_export(self.target, None)
        if self.backstore:
            host.lio.remove_backstore(self.backstore)

    def fact(self) -> str:
        and_backstore = f" and backstore {self.backstore}" if self.backstore else ""
        return f"target {self.target}{and_backstore} do not exist"

    def describe_do(self) -> str:
        and_backstore = f", and backstore {self.backstore}" if self.backstore else ""
        return f"remove target {self.target} with its ACLs{and_backstore}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


class NoOtherPath(Guard, tag="NoOtherPath", part="TARGET"):
    """No target but those that are known leads to the zvol; with initiators, none for these.

    The kernel is asked for the device, so that a target of a former name, or one that an
    administrator made, is seen too.
    """

    volatile = True
    dataset: str
    volume: str
    known: tuple[str, ...] = ()
    initiators: tuple[str, ...] = ()

    def probe(self, host: HostAdapters) -> bool:
        return not self._others(host)

    def refusal(self, host: HostAdapters) -> FailedPrecondition:
        targets = [path.target for path in self._others(host) if path.target]
        backstores = [path.backstore for path in self._others(host) if not path.target]
        by = targets or backstores
        return FailedPrecondition(
            f"{self.volume} ({self.dataset}) is still exported by {', '.join(by) or 'a target'}, "
            "which its record does not name: see zfsiloctl orphan list",
            reason="EXPORTED_ELSEWHERE",
            volume=self.volume,
            targets=",".join(by),
        )

    def _others(self, host: HostAdapters) -> list[ExportPath]:
        paths = [
            path
            for path in export_paths(host)
            if path.dataset == self.dataset and path.target not in self.known
        ]
        if not self.initiators:
            return paths
        return [path for path in paths if any(map(path.admits, self.initiators))]

    def fact(self) -> str:
        return f"no other target leads to {self.dataset}"

    def describe_do(self) -> str:
        return f"check that no other target leads to {self.dataset}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,), targets=self.known)

"""The kernel's NVMe target (nvmet): subsystems, namespaces, ports and hosts in configfs.

drivers/nvme/target/configfs.c of the kernel has the objects and attributes; tests/lab checks them
with Linux 6.12. Each method makes or removes one object from any half-made state; the steps have
the order. The keys of a host are compared and written, and are never part of an error or a log
line.

A host is one object of the whole machine, with one pair of keys. So each publication has a host
name of its own: model/names.py. The removal of the allowed_hosts link does not end a controller;
that of the link of a port does, for all hosts of the subsystem.
"""

from __future__ import annotations

import os

from zfsilod.host.disks import check_unused
from zfsilod.host.events import wait_for
from zfsilod.host.export_paths import dataset_of_device
from zfsilod.host.locks import host_lock
from zfsilod.host.nvme_keyring import NvmeKeyring
from zfsilod.host.nvmet_closed import ClosedPorts
from zfsilod.host.nvmet_ports import NvmetPorts
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, Unavailable
from zfsilod.model.host_facts import ExportPath
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import nqn, uuid_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host.configfs import Configfs
    from zfsilod.host.run import Runner
    from zfsilod.model.chap import Chap
    from zfsilod.storage.paths import AnyPath

MODULES = ("nvmet", "nvmet-tcp")
MODPROBE_TIMEOUT_S = 30
MODEL = "zfsilo volume"  # for lsblk, and for the udev rule on clients
SERIAL_DIGITS = 20  # an NVMe serial number has at most 20 characters
NSID = "1"
CONTROLLER_IDS = ("attr_cntlid_min", "attr_cntlid_max")
RENAMED_S = 10
LOCK = "/run/zfsilo/nvmet.lock"  # only root may create files there
LOCK_TIMEOUT_S = 30


class RealNvmet:
    """The NVMe subsystems of this host; see NvmetAdapter."""

    def __init__(
        self,
        run: Runner,
        find_device: Callable[[str], str],
        fs: Configfs,
        *,
        proc: AnyPath = "/proc",
        lock: AnyPath = LOCK,
        keyring: NvmeKeyring | None = None,
        closed: ClosedPorts | None = None,
    ) -> None:
        self._run = run
        self._find_device = find_device
        self._fs = fs
        self._ports = NvmetPorts(fs, proc)
        self._lock = lock
        self._keyring = keyring or NvmeKeyring()
        self._closed = closed or ClosedPorts()

    # Subsystems

    def has_target(self, target: str) -> bool:
        folder = _subsystem(target)
        return all(
            self._fs.read(f"{folder}/{name}") == value for name, value in _identity(target).items()
        )

    def add_target(self, target: str) -> None:
        self._load()
        self._fs.make(_subsystem(target))
        for name, value in _identity(target).items():
            if self._fs.read(f"{_subsystem(target)}/{name}") != value:
                self._fs.write(f"{_subsystem(target)}/{name}", value)

    def remove_target(self, target: str) -> None:
        self._fs.remove(_subsystem(target))

    def exists(self, target: str, initiator: str = "") -> bool:
        if not initiator:
            return self._fs.has(_subsystem(target))
        if initiator in self.list_acls(target) or self._closed.has(target):
            return True
        return self._fs.has(_host(initiator)) and not any(
            initiator in self._allowed(other) for other in self.list_targets()
        )

    def list_targets(self) -> list[str]:
        return self._fs.names("subsystems")

    def has_controller_ids(self, target: str, first: int, last: int) -> bool:
        folder = _subsystem(target)
        return [self._fs.read(f"{folder}/{name}") for name in CONTROLLER_IDS] == [
            str(first),
            str(last),
        ]

    def set_controller_ids(self, target: str, first: int, last: int) -> None:
        values = list(zip(CONTROLLER_IDS, (first, last), strict=True))
        present = self._fs.read(f"{_subsystem(target)}/{CONTROLLER_IDS[1]}") or "0"
        if first >= int(present):  # the kernel refuses a range that is empty at any time
            values.reverse()
        for name, value in values:
            self._fs.write(f"{_subsystem(target)}/{name}", str(value))

    # Namespace 1

    def has_namespace(self, target: str, *, dataset: str, uid: str) -> bool:
        folder = self._own_namespace(target)
        if self._fs.read(f"{folder}/enable") != "1":
            return False
        uuid = self._fs.read(f"{folder}/device_uuid") or ""
        if uuid != uuid_of(uid):
            raise Conflict(
                f"namespace {NSID} of {target} exists with the UUID {uuid}, not {uuid_of(uid)}",
                target=target,
                found=uuid,
            )
        same = (self._fs.read(f"{folder}/device_nguid") or "").replace("-", "") == uid
        return same and self._is_device_of(folder, dataset)

    def _own_namespace(self, target: str) -> str:
        """Return the folder of the namespace. Raises Conflict when there are others."""
        folder = f"{_subsystem(target)}/namespaces"
        if others := [name for name in self._fs.names(folder) if name != NSID]:
            raise Conflict(
                f"subsystem {target} has the namespaces {', '.join(others)}, which zfsilo did not "
                "make: remove them with nvmetcli",
                target=target,
            )
        return f"{folder}/{NSID}"

    def _is_device_of(self, folder: str, dataset: str) -> bool:
        """Tell whether a namespace has the device of the zvol that has this name now."""
        path = self._fs.read(f"{folder}/device_path") or ""
        present = dataset_of_device(path)
        return present == dataset if present else path.startswith("/dev/zd")

    def add_namespace(self, target: str, *, dataset: str, uid: str) -> None:
        folder = self._own_namespace(target)
        self._fs.make(folder)
        if self._fs.read(f"{folder}/enable") == "1":
            self._check_device(target, folder, dataset)
            if self.has_namespace(target, dataset=dataset, uid=uid):
                return
            self._fs.write(f"{folder}/enable", "0")  # another nguid
        # The name that the kernel has for the device, which stays when the zvol is renamed.
        device = os.path.realpath(self._find_device(dataset))
        check_unused(device, f"the zvol {dataset}")
        for name, value in (
            ("device_path", device),
            ("device_uuid", uuid_of(uid)),
            ("device_nguid", uuid_of(uid)),
            ("enable", "1"),
        ):
            self._fs.write(f"{folder}/{name}", value)

    def _check_device(self, target: str, folder: str, dataset: str) -> None:
        """Raise Conflict for a namespace of another zvol.

        After a rename it takes udev a moment to know the name.
        """
        if not wait_for(lambda: self._is_device_of(folder, dataset), RENAMED_S):
            raise Conflict(
                f"namespace {NSID} of {target} has the device of a zvol that was renamed or "
                f"replaced, not that of {dataset}: unpublish the volume (--all --fence), then "
                "publish it again",
                target=target,
                dataset=dataset,
            )

    def remove_namespace(self, target: str) -> None:
        folder = f"{_subsystem(target)}/namespaces/{NSID}"
        if self._fs.read(f"{folder}/enable") == "1":
            self._fs.write(f"{folder}/enable", "0")
        self._fs.remove(folder)

    def is_empty(self, target: str) -> bool:
        return not self._fs.names(f"{_subsystem(target)}/namespaces")

    def export_paths(self) -> list[ExportPath]:
        return [
            ExportPath(
                dataset=dataset,
                target=target,
                fabric="nvme",
                initiators=tuple(self._allowed(target)),
                open=self._fs.read(f"subsystems/{target}/attr_allow_any_host") == "1",
            )
            for target in self.list_targets()
            for number in self._fs.names(f"subsystems/{target}/namespaces")
            if (dataset := self._dataset(f"subsystems/{target}/namespaces/{number}"))
        ]

    def _dataset(self, folder: str) -> str:
        return dataset_of_device(self._fs.read(f"{folder}/device_path") or "")

    def remove_export(self, target: str, backstore: str | None) -> None:
        if not self._fs.has(_subsystem(target)):
            return
        self.remove_portals(target)
        for initiator in self.list_acls(target):
            self.remove_acl(target, initiator)
        for number in self._fs.names(f"{_subsystem(target)}/namespaces"):
            folder = f"{_subsystem(target)}/namespaces/{number}"
            self._fs.write(f"{folder}/enable", "0")
            self._fs.remove(folder)
        self.remove_target(target)

    # Portals

    def has_portals(self, target: str, portals: tuple[str, ...], *, tls: bool = False) -> bool:
        return self._ports.has(nqn(target), portals, tls=tls)

    def add_portals(self, target: str, portals: tuple[str, ...], *, tls: bool = False) -> None:
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            self._ports.link(nqn(target), portals, tls=tls)
        self._closed.forget(nqn(target))

    def add_portals_to_all(
        self, targets: tuple[str, ...], portals: tuple[str, ...], *, tls: bool = False
    ) -> None:
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            self._ports.link_all(map(nqn, targets), portals, tls=tls)

    def remove_portals(self, target: str) -> None:
        self._close(target)
        self._closed.forget(nqn(target))

    def _close(self, target: str) -> None:
        if self._ports.is_unused(nqn(target)):
            return
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            self._ports.unlink(nqn(target))

    def _reopen(self, target: str) -> None:
        """Link the ports again that a removal of a host has closed, unless no host is left."""
        closed = self._closed.find(nqn(target))
        if closed is None:
            return
        portals, tls = closed
        if self.list_acls(target):
            self.add_portals(target, portals, tls=tls)
        self._closed.forget(nqn(target))

    # Hosts

    def list_acls(self, target: str) -> list[str]:
        return self._allowed(nqn(target))

    def _allowed(self, target: str) -> list[str]:
        """Return the hosts of a subsystem that exists; another program may choose any name."""
        return sorted(self._fs.links(f"subsystems/{target}/allowed_hosts"))

    def has_acl(self, target: str, initiator: str, *, chap: Chap, allowed: tuple[str, ...]) -> bool:
        present = self.list_acls(target)
        for unknown in sorted(set(present) - {initiator, *allowed}):
            raise Conflict(
                f"subsystem {target} allows {unknown}, which has no publication; see "
                "`zfsiloctl orphan list`",
                target=target,
                initiator=unknown,
            )
        return initiator in present and self.has_secrets(target, initiator, chap=chap)

    def has_secrets(self, target: str, initiator: str, *, chap: Chap) -> bool:
        folder = _host(initiator)
        has_keys = self._fs.has(folder) and all(
            self._fs.is_private(f"{folder}/{name}") and self._fs.read(f"{folder}/{name}") == key
            for name, key in _keys(chap).items()
        )
        return has_keys and (not chap.has_tls or self._keyring.has(chap))

    def add_acl(self, target: str, initiator: str, *, chap: Chap) -> None:
        self._fs.make(_host(initiator))
        self._write_keys(initiator, chap)
        self._fs.link(f"{_subsystem(target)}/allowed_hosts/{initiator}", _host(initiator))
        self._reopen(target)  # after a removal that was stopped and is rolled back

    def set_secrets(self, target: str, initiator: str, *, chap: Chap) -> None:
        if self._fs.has(_host(initiator)):
            self._write_keys(initiator, chap)

    def _write_keys(self, initiator: str, chap: Chap) -> None:
        folder = _host(initiator)
        if not self._fs.has(f"{folder}/dhchap_ctrl_key"):
            raise FailedPrecondition(
                "this kernel's NVMe target cannot authenticate: it needs CONFIG_NVME_TARGET_AUTH "
                "(Linux 6.0 or later); publish over iscsi",
                reason="NO_NVME_AUTH",
            )
        for name, key in _keys(chap).items():
            self._fs.protect(f"{folder}/{name}")  # any user could read them otherwise
            self._fs.write(f"{folder}/{name}", key)
        if chap.has_tls:
            if not self._keyring.is_made:  # another program has loaded a part of the modules
                self._run(["modprobe", "-a", *MODULES], timeout_s=MODPROBE_TIMEOUT_S)
            self._keyring.put(chap)

    def remove_acl(self, target: str, initiator: str) -> None:
        """Remove the right of a host; the ports are unlinked first, which ends its controller.

        Other hosts of the subsystem lose theirs too, and connect again after a moment: the links
        come back at once, or when a removal that was stopped is repeated.
        """
        link = f"{_subsystem(target)}/allowed_hosts/{nqn(initiator)}"
        # One that was stopped may have left the controller of a host that connected meanwhile.
        if initiator in self.list_acls(target) or self._closed.has(nqn(target)):
            portals = self._noted_portals(target)
            for _moment in ("before", "meanwhile"):  # a host may connect until it is not allowed
                if self._ports.has_connections(portals):
                    self._close(target)
                self._fs.unlink(link)
        self._reopen(target)
        self._keyring.remove(initiator, target)
        try:
            self._fs.remove(_host(initiator))
        except Busy:
            return  # another subsystem allows it: one of the same volume, with a former name

    def _noted_portals(self, target: str) -> tuple[str, ...]:
        """Return the portals that a subsystem has, or had when a removal was stopped: noted."""
        closed = self._closed.find(target)
        portals = tuple(sorted(self._ports.portals(target)))
        if closed is not None:
            return (*closed[0], *portals)
        if portals:
            self._closed.note(target, portals, tls=self._ports.requires_tls(target))
        return portals

    def has_session(self, target: str, initiator: str) -> bool:
        """Tell whether a host may have a controller: the kernel does not list them.

        There is none without the link of a port, or for a host that is not allowed (remove_acl),
        or while no client at all is connected to the port.
        """
        if nqn(initiator) not in self.list_acls(target):
            return False
        return self._ports.has_connections(self._ports.portals(target))

    def end_session(self, target: str, initiator: str, *, grace_s: int) -> None:
        def has_ended() -> bool:
            return not self.has_session(target, initiator)

        if not wait_for(has_ended, grace_s):
            self.remove_acl(target, initiator)
        if not has_ended():
            raise Unavailable(
                f"the controller of {initiator} at {target} did not end",
                reason="SESSION_LIVE",
                target=target,
                initiator=initiator,
            )

    # Kernel modules

    def _load(self) -> None:
        """Load the modules of the target, which all volumes share and which are never unloaded."""
        if self._fs.has("subsystems"):  # the kernel loads nvmet-tcp for the first port
            return
        self._run(["modprobe", "-a", *MODULES], timeout_s=MODPROBE_TIMEOUT_S)
        if not self._fs.has("subsystems"):
            raise FailedPrecondition(
                f"{self._fs.root} does not exist; mount configfs with "
                "`systemctl start sys-kernel-config.mount`",
                reason="NO_CONFIGFS",
            )


def _subsystem(target: str) -> str:
    return f"subsystems/{nqn(target)}"


def _host(initiator: str) -> str:
    return f"hosts/{nqn(initiator)}"


def _identity(target: str) -> dict[str, str]:
    """Return the attributes of a subsystem; first of all it refuses hosts that are not allowed."""
    return {
        "attr_allow_any_host": "0",
        "attr_serial": target.rpartition(":")[2][:SERIAL_DIGITS],
        "attr_model": MODEL,
    }


def _keys(chap: Chap) -> dict[str, str]:
    """Return the attributes of the folder of a host; "ctrl" is the target's answer."""
    return {
        "dhchap_key": chap.password.reveal(),
        "dhchap_ctrl_key": chap.mutual_password.reveal(),
    }

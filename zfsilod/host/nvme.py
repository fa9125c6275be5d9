"""The kernel's NVMe/TCP host: a write to /dev/nvme-fabrics connects, sysfs has state and identity.

drivers/nvme/host/fabrics.c of the kernel reads the options and tells the outcome by errno. No
nvme-cli is used: its output changes between versions, and it takes secrets as arguments.
"""

from __future__ import annotations

import os

from zfsilod.host.device_users import static_users
from zfsilod.host.disks import SETTLE_S, check_serial, check_unused, is_responsive
from zfsilod.host.disks import users_beside as users_of_device
from zfsilod.host.events import wait_for
from zfsilod.host.nvme_disks import LIVE, recovering
from zfsilod.host.nvme_fabrics import FABRICS
from zfsilod.host.nvme_keyring import NvmeKeyring
from zfsilod.host.nvme_paths import NvmePaths, is_limited, limit_requests
from zfsilod.host.portals import canonical
from zfsilod.model.connection import foreign_target
from zfsilod.model.errors import Conflict, Unavailable
from zfsilod.model.host_facts import SessionProblem
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import nqn
from zfsilod.storage.files import make_folder, write_private
from zfsilod.storage.paths import exists, names, read_text, remove_file

if TYPE_CHECKING:
    from zfsilod.host.device import Device
    from zfsilod.host.nvme_disks import NvmeDisks
    from zfsilod.host.run import Runner
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk
    from zfsilod.storage.paths import AnyPath

MARKS = "/run/zfsilo/nvme"  # a file for each subsystem with a controller: the name of its server
TARGET_HOSTS = "/sys/kernel/config/nvmet/hosts"  # of the target of this host
MODPROBE_TIMEOUT_S = 30
DISK_DEADLINE_S = 30
END_DEADLINE_S = 30
GROWTH_DEADLINE_S = 10
RESPONSE_TIMEOUT_S = 5


class RealNvme:
    """The NVMe/TCP controllers of this host; see NvmeAdapter."""

    def __init__(
        self,
        run: Runner,
        disks: NvmeDisks,
        fabrics: AnyPath = FABRICS,
        marks: AnyPath = MARKS,
        keyring: NvmeKeyring | None = None,
    ) -> None:
        self._run = run
        self._disks = disks
        self._fabrics = os.fspath(fabrics)
        self._marks = os.fspath(marks)
        self._keyring = keyring or NvmeKeyring(target_hosts=TARGET_HOSTS)
        self._paths = NvmePaths(disks, self._fabrics, self._keyring)

    def owner(self, target: str) -> str | None:
        controllers = self._disks.controllers(target)
        if not controllers:
            return None
        return self._mark(target) if all(one.is_own for one in controllers) else ""

    def _mark(self, target: str) -> str:
        try:
            return read_text(f"{self._marks}/{nqn(target)}").strip()
        except FileNotFoundError:
            return ""

    def _check_owner(self, target: str, server: str) -> None:
        owner = self.owner(target)
        if owner not in (None, server):
            raise Conflict(
                foreign_target(target, owner or ""), reason="FOREIGN_TARGET", target=target
            )

    def is_available(self) -> bool:
        from zfsilod.host.kernel_modules import may_have_module  # no worker needs it

        return may_have_module("nvme_tcp")

    # Controllers

    def has_controller(
        self, disk: Disk, portals: tuple[str, ...], *, server: str, tls: Chap | None = None
    ) -> bool:
        self._check_owner(disk.target, server)
        if not self._paths.is_live(disk.target):
            for controller in self._disks.controllers(disk.target):
                if controller.portal in canonical(portals):
                    raise recovering(disk.target, controller.state)
            return False
        device = self._disks.ready(disk.target)
        if device:
            check_serial(device, disk)
        hidden = all(one.hides_secrets for one in self._disks.controllers(disk.target))
        if device is None or tls is None:
            return device is not None and hidden
        return hidden and not self._paths.without_tls(disk.target) and self._keyring.has(tls)

    def has_paths(self, disk: Disk) -> bool:
        return self.has_any_session(disk)

    def follows(self, disk: Disk, portals: tuple[str, ...]) -> bool:
        target = disk.target
        if not self._disks.controllers(target):
            return True
        return not self._paths.stale(target, portals) and not (
            self._paths.is_live(target) and self._paths.missing(target, portals)
        )

    def connect(
        self,
        disk: Disk,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str,
        lost_session_s: int,
    ) -> None:
        target = nqn(disk.target)
        self._check_owner(target, server)
        self._load()
        make_folder(self._marks)
        write_private(f"{self._marks}/{target}", f"{server}\n".encode())
        if chap.has_tls:
            self._keyring.put(chap)
        self._paths.connect(target, portals, chap, lost_session_s)
        if chap.has_tls:
            self._check_tls(target, portals)
        device = wait_for(lambda: self._disks.ready(target), DISK_DEADLINE_S)
        if device is None:
            raise Unavailable(
                f"connected to {target}, but its disk did not appear within {DISK_DEADLINE_S} s",
                reason="NO_DEVICE",
                target=target,
            )
        for controller in self._paths.stale(target, portals):
            if any(one.state == LIVE and one.paths for one in self._disks.controllers(target)):
                controller.delete()  # the disk has another path
        for controller in self._disks.controllers(target):
            controller.hide_secrets()  # also of one whose worker was killed
        self.set_queue_limit(disk)  # at once: a path that joins a mounted disk has I/O already
        _check_disk(device, disk)

    def _check_tls(self, target: str, portals: tuple[str, ...]) -> None:
        """End a live controller without TLS at these portals, of which there should be none."""
        for controller in self._paths.without_tls(target):
            if controller.portal in canonical(portals):  # the others are stale
                controller.delete()
                raise Unavailable(
                    f"the kernel connected to {target} at {controller.portal} without TLS",
                    reason="NO_LOGIN",
                    target=target,
                )

    def logout(self, disk: Disk) -> None:
        controllers = self._disks.controllers(disk.target)
        device = self._disks.find(disk.target)
        # A lost one is removed even while its disk is in use, which ends hanging I/O.
        if device and controllers and controllers[0].state == LIVE:
            check_unused(device.path, f"the disk of {disk.target}")
        self.drop(disk)

    def drop(self, disk: Disk) -> None:
        # First of all: a controller that is left shows that this was begun.
        self._keyring.forget(disk.target)
        for controller in self._disks.controllers(disk.target):
            controller.delete()
        if not wait_for(lambda: not self._disks.controllers(disk.target), END_DEADLINE_S):
            raise Unavailable(
                f"the controller of {disk.target} did not end",
                reason="LOGOUT_TIMEOUT",
                target=disk.target,
            )
        remove_file(f"{self._marks}/{nqn(disk.target)}")

    def has_any_session(self, disk: Disk) -> bool:
        return bool(self._disks.controllers(disk.target))

    def is_lost(self, disk: Disk) -> bool:
        return not self._paths.is_live(disk.target)

    def sessions(self, prefix: str = "") -> list[str]:
        targets = {controller.target for controller in self._disks.controllers()}
        return sorted(target for target in targets if target.startswith(prefix))

    def portal(self, disk: Disk) -> str:
        controllers = self._disks.controllers(disk.target)
        return controllers[0].portal if controllers else ""

    def has_loss_wait(self, disk: Disk, seconds: int) -> bool:
        controllers = self._disks.controllers(disk.target)
        return bool(controllers) and all(one.waits(seconds) for one in controllers)

    def set_loss_wait(self, disk: Disk, seconds: int) -> None:
        for controller in self._disks.controllers(disk.target):
            controller.set_wait(seconds)

    # The disk

    def has_queue_limit(self, disk: Disk) -> bool:
        device = self._disks.find(disk.target)
        return device is not None and all(map(is_limited, self._limited(device, disk)))

    def set_queue_limit(self, disk: Disk) -> None:
        limit_requests(self._limited(self._disks.need(disk), disk))

    def _limited(self, device: Device, disk: Disk) -> list[str]:
        """Return the folders of the disk and of its paths, where requests are merged again."""
        return [device.folder, *self._disks.paths(disk.target)]

    def is_responsive(self, disk: Disk) -> bool:
        device = self._disks.find(disk.target)
        return device is None or is_responsive(device.path, RESPONSE_TIMEOUT_S)

    def users(self, disk: Disk) -> list[str]:
        device = self._disks.find(disk.target)
        return static_users(device.name, self._disks.sys) if device else []

    def users_beside(self, disk: Disk, paths: tuple[str, ...], *, settle: bool = True) -> list[str]:
        device = self._disks.find(disk.target)
        if device is None:
            return []
        return users_of_device(device.path, paths, settle_s=SETTLE_S if settle else 0)

    def has_size(self, disk: Disk) -> bool:
        device = self._disks.find(disk.target)
        return device is not None and device.size_bytes >= disk.size_bytes

    def rescan(self, disk: Disk) -> None:
        device = self._disks.need(disk)
        for controller in self._disks.controllers(disk.target):
            controller.rescan()
        if not wait_for(lambda: device.size_bytes >= disk.size_bytes, GROWTH_DEADLINE_S):
            raise Unavailable(
                f"the server exports {disk.target} with {device.size_bytes} bytes, "
                f"not with {disk.size_bytes}; grow the volume on the server first",
                reason="NOT_GROWN",
                target=disk.target,
            )

    # Secrets of controllers, which also a lost one needs to connect again

    def has_session_secrets(self, chaps: dict[str, Chap]) -> bool:
        return all(
            self._paths.uses(controller, chap) and (not chap.has_tls or self._keyring.has(chap))
            for target, chap in chaps.items()
            for controller in self._disks.controllers(target)
        )

    def set_session_secrets(self, chaps: dict[str, Chap]) -> None:
        for target, chap in chaps.items():
            self._paths.renew(target, chap)

    # For the daemon

    def problems(self, disks: list[Disk]) -> dict[str, SessionProblem]:
        problems: dict[str, SessionProblem] = {}
        for disk in disks:
            if not self.has_any_session(disk):
                problems[disk.target] = SessionProblem(fault="NO_SESSION")
            elif self.is_lost(disk):
                problems[disk.target] = SessionProblem(fault="LOST")
            elif (device := self._disks.find(disk.target)) is None or device.serial != disk.serial:
                problems[disk.target] = SessionProblem(fault="NO_DISK")
            elif lost := self._paths.lost(disk.target):
                problems[disk.target] = SessionProblem(fault="PATH_LOST", portals=lost)
        return problems

    def _load(self) -> None:
        if not exists(self._fabrics) or "nvme_tcp" not in names(f"{self._disks.sys}/module"):
            self._run(["modprobe", "nvme-tcp"], timeout_s=MODPROBE_TIMEOUT_S)


def _check_disk(device: Device, disk: Disk) -> None:
    check_serial(device, disk)
    if device.size_bytes < disk.size_bytes:  # a larger one was grown on the server meanwhile
        raise Conflict(
            f"the disk {device.path} of {disk.target} has {device.size_bytes} bytes, "
            f"not {disk.size_bytes}",
            device=device.path,
            found=str(device.size_bytes),
            expected=str(disk.size_bytes),
        )

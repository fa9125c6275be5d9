"""NVMe controllers of this host and the disks that they lead to, in sysfs.

    /sys/class/nvme/nvme0                        a controller: a session with a subsystem
    /sys/class/nvme/nvme0/nvme0c0n1              the path to a namespace by this controller
    /sys/class/nvme-subsystem/NAME/nvme0n1       the disk, of all paths: native multipath

drivers/nvme/host/sysfs.c of the kernel has the attributes. A disk is looked up by the name of its
subsystem and checked by its UUID, never by a name such as nvme0n1, which may change at each
connect. Where native multipath is off (nvme_core.multipath=N), the disk is in the folder of the
controller.
"""

from __future__ import annotations

import os

from zfsilod.host.attributes import read, write
from zfsilod.host.device import DEV, Device
from zfsilod.host.disks import DETACH_WAIT_S, RUN, SYS, Disks, check_serial
from zfsilod.host.nvme_fabrics import SECRETS, secret_options
from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.model.names import HOST_NQN, seen_portal
from zfsilod.storage.paths import exists, names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk
    from zfsilod.storage.paths import AnyPath

LIVE = "live"
OTHERS = 0o077  # in a mode: all but the owner
NO_LIMIT = "off"  # of ctrl_loss_tmo: nvme_ctrl_loss_tmo_show()


class NvmeController:
    """An NVMe/TCP controller of this host: a directory in /sys/class/nvme."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.target = read(f"{folder}/subsysnqn")

    @property
    def state(self) -> str:
        """LIVE, connecting, resetting, deleting and others; "" when it does not exist any more."""
        return read(f"{self.folder}/state")

    @property
    def is_own(self) -> bool:
        """Whether zfsilo made it: it has a host name of a publication."""
        return read(f"{self.folder}/hostnqn").startswith(HOST_NQN)

    @property
    def portal(self) -> str:
        """The portal at which it is, or tries to be."""
        words = [part.partition("=") for part in read(f"{self.folder}/address").split(",")]
        parts = {name: value for name, _equals, value in words}
        return seen_portal(parts.get("traddr", ""), parts.get("trsvcid", ""))

    @property
    def paths(self) -> list[str]:
        """The folders of its paths, beside that of the disk itself."""
        return [
            f"{self.folder}/{name}"
            for name in names(self.folder)
            if name.startswith("nvme") and exists(f"{self.folder}/{name}/queue")
        ]

    def has_secrets(self, chap: Chap) -> bool:
        """Tell whether it authenticates with these keys, now and when it connects again."""
        return all(
            read(f"{self.folder}/{name}") == secret for name, secret in secret_options(chap).items()
        )

    @property
    def tls_key(self) -> int:
        """The serial number of the PSK of its connection; 0: it has no TLS."""
        return int(read(f"{self.folder}/tls_key") or "0", 16)

    def hide_secrets(self) -> None:
        """Let only root read its keys; sysfs shows them to any user otherwise."""
        for name in SECRETS:
            try:
                os.chmod(f"{self.folder}/{name}", 0o600)
            except FileNotFoundError:
                continue  # the controller is gone

    @property
    def hides_secrets(self) -> bool:
        """Whether only root can read its keys."""
        for name in SECRETS:
            try:
                mode = os.stat(f"{self.folder}/{name}").st_mode
            except FileNotFoundError:
                continue
            if mode & OTHERS:
                return False
        return True

    @property
    def loss_wait(self) -> int:
        """Seconds that I/O waits for it when it is lost; 0: without limit."""
        text = read(f"{self.folder}/ctrl_loss_tmo")
        return int(text) if text.isdecimal() else 0

    def waits(self, seconds: int) -> bool:
        """Tell whether I/O waits this long when it is lost; the kernel counts in attempts."""
        delay = int(read(f"{self.folder}/reconnect_delay") or 1)
        present = read(f"{self.folder}/ctrl_loss_tmo")
        return present == (str(-(-seconds // delay) * delay) if seconds else NO_LIMIT)

    def set_wait(self, seconds: int) -> None:
        """Change how long I/O waits for it; one that has tried for longer ends at the next try."""
        if not self.waits(seconds):
            self.set_attribute("ctrl_loss_tmo", str(seconds or -1))

    def delete(self) -> None:
        """End it: pending I/O without another path fails. Returns when the kernel removed it."""
        self.set_attribute("delete_controller", "1")

    def rescan(self) -> None:
        """Make the kernel read the sizes of its namespaces again."""
        self.set_attribute("rescan_controller", "1")

    def set_attribute(self, name: str, value: str) -> None:
        """Set an attribute, unless the controller is gone. Raises Unavailable."""
        try:
            write(f"{self.folder}/{name}", value)
        except OSError as error:
            if exists(self.folder):
                raise Unavailable(
                    f"{name} of the controller of {self.target} cannot be set: {error.strerror}",
                    target=self.target,
                ) from error


class NvmeDevice(Device):
    """The disk of a namespace, of all its paths."""

    @property
    def serial(self) -> str:
        """The UUID of the namespace as a uid; "" if none."""
        return read(f"{self.folder}/uuid").replace("-", "")


class NvmeDisks:
    """The NVMe controllers of this host and their disks; the methods are those of Disks."""

    def __init__(self, sys: AnyPath = SYS, dev: AnyPath = DEV, run: AnyPath = RUN) -> None:
        self.sys, self.dev = os.fspath(sys), os.fspath(dev)
        self._udev = Disks(sys, dev, run)

    def controllers(self, target: str = "") -> list[NvmeController]:
        """Return the controllers of a subsystem, or of all; those that are live come first."""
        root = f"{self.sys}/class/nvme"
        present = [NvmeController(f"{root}/{name}") for name in names(root)]
        wanted = [one for one in present if one.target and target in ("", one.target)]
        return sorted(wanted, key=lambda controller: controller.state != LIVE)

    def find(self, target: str) -> Device | None:
        """Return the disk of a subsystem; None when it has no controller or no disk."""
        for name in self._subsystems(target):
            for disk in names(name):
                if _is_disk(disk) and exists(f"{name}/{disk}/uuid"):
                    return NvmeDevice(f"{name}/{disk}", self.dev)
        return None

    def paths(self, target: str) -> list[str]:
        """Return the folders of the paths of a disk, beside that of the disk itself."""
        return [path for controller in self.controllers(target) for path in controller.paths]

    def need(self, disk: Disk) -> Device:
        """Return the device of a disk, live and with the identity of the volume.

        Raises FailedPrecondition (NOT_CONNECTED) without a controller, Unavailable when it is being
        recovered or its disk has not appeared, Conflict when the identity is another.
        """
        controllers = self.controllers(disk.target)
        if not controllers:
            raise FailedPrecondition(
                f"there is no controller of {disk.target}; connect the volume",
                reason="NOT_CONNECTED",
                target=disk.target,
            )
        if controllers[0].state != LIVE:
            raise recovering(disk.target, controllers[0].state)
        device = self.find(disk.target)
        if device is None:
            raise Unavailable(f"the disk of {disk.target} has not appeared", target=disk.target)
        check_serial(device, disk)
        return device

    def ready(self, target: str) -> Device | None:
        """Return the disk of a live controller, once it has an identity and udev knows it."""
        controllers = self.controllers(target)
        if not controllers or controllers[0].state != LIVE:
            return None
        device = self.find(target)
        return device if device and device.serial and self._udev.udev_knows(device) else None

    @contextmanager
    def hurried(self, target: str) -> Iterator[None]:
        """Let I/O fail soon when the controller is lost meanwhile, so that no unmount hangs."""
        before = [(controller, controller.loss_wait) for controller in self.controllers(target)]
        for controller, wait_s in before:
            if wait_s == 0 or wait_s > DETACH_WAIT_S:
                controller.set_wait(DETACH_WAIT_S)
        try:
            yield
        finally:
            for controller, wait_s in before:
                controller.set_wait(wait_s)

    def _subsystems(self, target: str) -> list[str]:
        """Return the folders in which the disk of a subsystem may be."""
        root = f"{self.sys}/class/nvme-subsystem"
        folders = [f"{root}/{name}" for name in names(root)]
        return [
            *(folder for folder in folders if read(f"{folder}/subsysnqn") == target),
            *(controller.folder for controller in self.controllers(target)),
        ]


def recovering(target: str, state: str) -> Unavailable:
    """Return the error for a controller that is lost, and tries to connect again."""
    return Unavailable(
        f"the controller of {target} was lost and is being recovered (state {state})",
        reason="SESSION_RECOVERY",
        target=target,
    )


def _is_disk(name: str) -> bool:
    """Tell whether a name is that of a disk, as nvme0n1: nvme0c1n1 is a path."""
    controller, letter, namespace = name.removeprefix("nvme").partition("n")
    return bool(letter) and controller.isdecimal() and namespace.isdecimal()

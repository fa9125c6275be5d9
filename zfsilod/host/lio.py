"""The kernel's iSCSI target (LIO): backstores, targets, LUNs, portals and ACLs in configfs.

drivers/target/target_core_configfs.c and drivers/target/iscsi/iscsi_target_configfs.c of the kernel
have the objects and attributes; tests/lab checks them with Linux 6.12. Each method makes or removes
one object from any half-made state; the steps have the order. The CHAP secrets below auth/ are
compared and written, and are never part of an error or a log line.
"""

from __future__ import annotations

import os

from zfsilod.host import zvol_device
from zfsilod.host.disks import check_unused
from zfsilod.host.events import wait_for
from zfsilod.host.export_paths import backstore_in_use, device_number, export_paths
from zfsilod.host.portals import canonical, listen_at_each, served
from zfsilod.host.reservations import Reservations
from zfsilod.model.errors import (
    Busy,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
)
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import check_portal, is_object, iscsi_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host.configfs import Configfs
    from zfsilod.host.run import Runner
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import ExportPath

CORE = "core/iblock_0"  # the directory of all backstores: shared, never removed
MODULES = ("target_core_mod", "target_core_iblock", "iscsi_target_mod")
MODPROBE_TIMEOUT_S = 30
VENDOR, PRODUCT = "zfsilo", "volume"  # of SCSI INQUIRY, for lsblk and multipath.conf on clients
TARGET_ATTRIBUTES = {
    "authentication": "1",
    "cache_dynamic_acls": "0",
    "demo_mode_discovery": "0",  # discovery shows a target only to initiators with an ACL
    "demo_mode_write_protect": "1",
    "generate_node_acls": "0",
    "prod_mode_write_protect": "1",  # a LUN is mapped read-only first, never writable half made
}
PREFIXES = ("iqn.", "eui.", "naa.")  # of targets: the directory has other entries, too
OPEN_TRIES = 3
RENAMED_S = 10
NO_SESSION = "No active iSCSI Session"
SERIAL_PREFIX = "T10 VPD Unit Serial Number: "


class RealLio:
    """The iSCSI targets of this host; see LioAdapter."""

    def __init__(self, run: Runner, zvol_device: Callable[[str], str], fs: Configfs) -> None:
        self._run = run
        self._zvol_device = zvol_device
        self._fs = fs
        self._reservations = Reservations(fs)

    # Backstores

    def has_backstore(self, name: str, *, dataset: str, serial: str) -> bool:
        folder = _backstore(name)
        if self._fs.read(f"{folder}/enable") != "1":
            return False
        info = self._fs.read(f"{folder}/info") or ""
        device = info.partition("UDEV PATH: ")[2].partition("  readonly:")[0]
        if device != zvol_device.link(dataset):
            raise Conflict(
                f"the backstore {name} exists with the device {device}, not that of {dataset}",
                backstore=name,
                dataset=dataset,
                device=device,
            )
        exported = (self._fs.read(f"{folder}/wwn/vpd_unit_serial") or "")[len(SERIAL_PREFIX) :]
        if exported != serial:
            raise Conflict(
                f"the backstore {name} exists with the serial {exported}, not {serial}",
                backstore=name,
                serial=exported,
            )
        if not self._is_device_of(folder, dataset):
            return False
        return self._fs.read(f"{folder}/attrib/emulate_tpu") == "1"

    def _is_device_of(self, folder: str, dataset: str) -> bool:
        """Tell whether a backstore has the device of the zvol that has this name now."""
        number = device_number(self._fs.read(f"{folder}/info") or "")
        return not number or zvol_device.is_device_of(dataset, number)

    def _check_device(self, name: str, folder: str, dataset: str) -> None:
        """Raise Conflict for a backstore of another zvol; the kernel cannot exchange its device.

        After a rename it takes udev a moment to know the name.
        """
        if not wait_for(lambda: self._is_device_of(folder, dataset), RENAMED_S):
            raise Conflict(
                f"the backstore {name} has the device of a zvol that was renamed or replaced, not "
                f"that of {dataset}: unpublish the volume (--all --fence), then publish it again",
                backstore=name,
                dataset=dataset,
            )

    def add_backstore(self, name: str, *, dataset: str, serial: str) -> None:
        self._load()
        folder = _backstore(name)
        self._fs.make(CORE)
        enabled = self._fs.read(f"{folder}/enable")
        if enabled == "0":
            self._fs.remove(folder)  # which reservations it was given cannot be seen
        self._fs.make(folder)
        if enabled != "1":
            self._fs.write(f"{folder}/wwn/vpd_unit_serial", serial)
            for attribute, value in (("vendor_id", VENDOR), ("product_id", PRODUCT)):
                if self._fs.has(f"{folder}/wwn/{attribute}"):
                    self._fs.write(f"{folder}/wwn/{attribute}", value)
            self._reservations.make_save_folder()
            self._reservations.give_saved(folder, serial)
            self._open(folder, dataset)
        else:
            self._check_device(name, folder, dataset)
        # Off by default: UNMAP of the client returns space to the pool.
        self._fs.write(f"{folder}/attrib/emulate_tpu", "1")

    def _open(self, folder: str, dataset: str, tries: int = OPEN_TRIES) -> None:
        """Make the kernel open the zvol by the link that udev made.

        The link may disappear once more: udev may still be processing the removal of an earlier
        zvol with the same name. Then it is waited for again.
        """
        device = self._zvol_device(dataset)
        try:
            check_unused(device, f"the zvol {dataset}")
            self._fs.write(f"{folder}/control", f"udev_path={device}")
            self._fs.write(f"{folder}/udev_path", device)
            self._fs.write(f"{folder}/enable", "1")
        except (FailedPrecondition, Unavailable) as error:
            if error.facts.get("errno") != "ENOENT" or tries == 1:
                raise
            self._open(folder, dataset, tries - 1)

    def remove_backstore(self, name: str) -> None:
        try:
            self._fs.remove(_backstore(name))
        except Busy as error:
            by = [path.target for path in self.export_paths() if path.backstore == name]
            raise backstore_in_use(name, by) if any(by) else error from None

    def has_reservations(self, serial: str, initiator: str = "") -> bool:
        is_saved = self._reservations.is_saved(serial, initiator)
        return is_saved and bool(initiator or not self._is_exported(serial))

    def forget_reservations(self, serial: str, initiator: str = "") -> None:
        if self.has_reservations(serial, initiator):
            self._reservations.remove_saved(serial, initiator)

    def _is_exported(self, serial: str) -> bool:
        """Tell whether a backstore has a serial: the kernel keeps the file as long as it exists."""
        serials = (
            self._fs.read(f"{_backstore(one)}/wwn/vpd_unit_serial")
            for one in self.list_backstores()
        )
        return f"{SERIAL_PREFIX}{serial}" in serials

    def list_backstores(self) -> list[str]:
        return self._fs.names(CORE)

    # Targets

    def has_target(self, target: str) -> bool:
        folder = f"{_group(target)}/attrib"
        return all(
            self._fs.read(f"{folder}/{name}") == value for name, value in TARGET_ATTRIBUTES.items()
        )

    def add_target(self, target: str) -> None:
        self._load()
        for path in ("iscsi", f"iscsi/{iscsi_name(target)}", _group(target)):
            self._fs.make(path)
        for name, value in TARGET_ATTRIBUTES.items():
            self._fs.write(f"{_group(target)}/attrib/{name}", value)

    def remove_target(self, target: str) -> None:
        self._fs.remove(_group(target))
        self._fs.remove(f"iscsi/{iscsi_name(target)}")

    def exists(self, target: str, initiator: str = "") -> bool:
        target_folder = f"iscsi/{iscsi_name(target)}"
        return self._fs.has(_acl(target, initiator) if initiator else target_folder)

    def list_targets(self) -> list[str]:
        return [name for name in self._fs.names("iscsi") if name[:4].lower() in PREFIXES]

    def list_acls(self, target: str) -> list[str]:
        return self._fs.names(f"{_group(target)}/acls")

    def remove_export(self, target: str, backstore: str | None) -> None:
        if self._fs.has(f"iscsi/{iscsi_name(target)}"):
            self.disable(target)
            self.remove_portals(target)
            for initiator in self.list_acls(target):
                self.remove_acl(target, initiator)
            for lun in self._fs.names(f"{_group(target)}/lun"):
                self._remove_lun(f"{_group(target)}/lun/{lun}")
            self.remove_target(target)
        if backstore is not None:
            self.remove_backstore(backstore)

    def export_paths(self) -> list[ExportPath]:
        return list(export_paths(self._fs))

    # LUN 0

    def has_lun(self, target: str, backstore: str) -> bool:
        links = self._fs.links(f"{_group(target)}/lun/lun_0")
        for linked in links.values():
            if linked != os.path.realpath(self._fs.path(_backstore(backstore))):
                present = os.path.basename(linked)
                raise Conflict(
                    f"LUN 0 of {target} is {present}, not {backstore}",
                    target=target,
                    backstore=present,
                )
        return bool(links)

    def add_lun(self, target: str, backstore: str) -> None:
        folder = f"{_group(target)}/lun/lun_0"
        self._fs.make(folder)
        if not self.has_lun(target, backstore):
            self._fs.link(f"{folder}/{backstore}", _backstore(backstore))

    def remove_lun(self, target: str) -> None:
        for initiator in self._fs.names(f"{_group(target)}/acls"):
            # Otherwise the link would be removed and the object remain, which rmdir(2) refuses.
            if self._fs.has(f"{_acl(target, initiator)}/lun_0"):
                raise Busy(
                    f"LUN 0 of {target} is still mapped for {initiator}",
                    reason="LUN_MAPPED",
                    target=target,
                    initiator=initiator,
                )
        self._remove_lun(f"{_group(target)}/lun/lun_0")

    def _remove_lun(self, folder: str) -> None:
        for link in self._fs.links(folder):
            self._fs.unlink(f"{folder}/{link}")
        self._fs.remove(folder)

    # Portals

    def has_portals(self, target: str, portals: tuple[str, ...]) -> bool:
        wanted = frozenset(canonical(portals))
        return served(wanted) <= set(map(check_portal, self._portals(target))) <= wanted

    def add_portals(self, target: str, portals: tuple[str, ...]) -> None:
        """Make the portals; one whose address this host does not have is left out.

        The loss of a network must not end the service by the others.
        """
        wanted = frozenset(canonical(portals))  # all are checked first
        present = {portal: check_portal(portal) for portal in self._portals(target)}
        for portal in (name for name, its_portal in present.items() if its_portal not in wanted):
            self._fs.remove(f"{_group(target)}/np/{portal}")
        # IPv4 first. Linux 6.12 takes 0.0.0.0 for an existing IPv6 listener of the same port, and
        # makes a portal without a listener (tests/lab).
        missing = served(wanted) - set(present.values())
        in_order = sorted(missing, key=lambda portal: (portal.startswith("["), portal))
        listen_at_each(
            in_order,
            lambda portal: self._fs.make(f"{_group(target)}/np/{portal}"),
            "server.portals",
        )

    def remove_portals(self, target: str) -> None:
        for portal in self._portals(target):
            self._fs.remove(f"{_group(target)}/np/{portal}")

    def _portals(self, target: str) -> list[str]:
        return self._fs.names(f"{_group(target)}/np")

    def is_enabled(self, target: str) -> bool:
        return self._fs.read(f"{_group(target)}/enable") == "1"

    def enable(self, target: str) -> None:
        self._fs.write(f"{_group(target)}/enable", "1")

    def disable(self, target: str) -> None:
        if self.is_enabled(target):
            self._fs.write(f"{_group(target)}/enable", "0")

    # ACLs

    def has_acl(self, target: str, initiator: str, *, chap: Chap, allowed: tuple[str, ...]) -> bool:
        present = self._fs.names(f"{_group(target)}/acls")
        for unknown in set(present) - {initiator, *allowed}:
            raise Conflict(
                f"the target {target} has an ACL for {unknown}, which has no publication; "
                "see `zfsiloctl orphan list`",
                target=target,
                initiator=unknown,
            )
        return initiator in present and self._has_secrets(_acl(target, initiator), chap)

    def _has_secrets(self, folder: str, chap: Chap) -> bool:
        try:
            return all(
                self._fs.read(f"{folder}/auth/{name}") == value
                for name, value in _auth(chap).items()
            )
        except PermissionDenied:
            # The kernel shows secrets to CAP_SYS_ADMIN only, which the daemon does not have: it
            # assumes that they are right. A worker has it and compares them.
            return True

    def add_acl(self, target: str, initiator: str, *, chap: Chap) -> None:
        folder = _acl(target, initiator)
        self._fs.make(folder)
        for name, value in _auth(chap).items():
            self._fs.write(f"{folder}/auth/{name}", value)

    def has_secrets(self, target: str, initiator: str, *, chap: Chap) -> bool:
        folder = _acl(target, initiator)
        return self._fs.has(folder) and self._has_secrets(folder, chap)

    def set_secrets(self, target: str, initiator: str, *, chap: Chap) -> None:
        if self._fs.has(_acl(target, initiator)):
            self.add_acl(target, initiator, chap=chap)

    def remove_acl(self, target: str, initiator: str) -> None:
        # rmdir(2) of the ACL ends its session, and returns when the session has ended.
        folder = _acl(target, initiator)
        for lun in self._fs.names(folder):
            if lun.startswith("lun_"):
                self._remove_lun(f"{folder}/{lun}")
        self._fs.remove(folder)

    def has_mapped_lun(self, target: str, initiator: str, *, readonly: bool) -> bool:
        folder = f"{_acl(target, initiator)}/lun_0"
        return self._fs.read(f"{folder}/write_protect") == _flag(readonly)

    def map_lun(self, target: str, initiator: str, *, readonly: bool) -> None:
        folder = f"{_acl(target, initiator)}/lun_0"
        self._fs.make(folder)
        if not self._fs.read(f"{folder}/write_protect"):  # no link, or a link to a removed LUN
            self._fs.unlink(f"{folder}/lun_0")
            self._fs.link(f"{folder}/lun_0", f"{_group(target)}/lun/lun_0")
        self._fs.write(f"{folder}/write_protect", _flag(readonly))

    def unmap_lun(self, target: str, initiator: str) -> None:
        self._remove_lun(f"{_acl(target, initiator)}/lun_0")

    def has_session(self, target: str, initiator: str) -> bool:
        info = self._fs.read(f"{_acl(target, initiator)}/info")
        return info is not None and not info.startswith(NO_SESSION)

    def end_session(self, target: str, initiator: str, *, grace_s: int) -> None:
        def has_ended() -> bool:
            return not self.has_session(target, initiator)

        if not wait_for(has_ended, grace_s):
            self.remove_acl(target, initiator)
        if not has_ended():
            raise Unavailable(
                f"the session of {initiator} with {target} did not end",
                reason="SESSION_LIVE",
                target=target,
                initiator=initiator,
            )

    # Kernel modules

    def _load(self) -> None:
        """Load the modules of the target, which all volumes share and which are never unloaded."""
        if self._fs.has("core") and self._fs.has("iscsi"):
            return
        self._run(["modprobe", "-a", *MODULES], timeout_s=MODPROBE_TIMEOUT_S)
        if not self._fs.has("core"):
            raise FailedPrecondition(
                f"{self._fs.root} does not exist; mount configfs with "
                "`systemctl start sys-kernel-config.mount`",
                reason="NO_CONFIGFS",
            )


def _backstore(name: str) -> str:
    if not is_object(name):
        raise InvalidArgument(f"{name[:80]!r} is not the name of a backstore")
    return f"{CORE}/{name}"


def _group(target: str) -> str:
    return f"iscsi/{iscsi_name(target)}/tpgt_1"


def _acl(target: str, initiator: str) -> str:
    return f"{_group(target)}/acls/{iscsi_name(initiator)}"


def _auth(chap: Chap) -> dict[str, str]:
    """Return the attributes of the auth/ directory of an ACL; "mutual" is the target's answer."""
    return {
        "userid": chap.username,
        "password": chap.password.reveal(),
        "userid_mutual": chap.mutual_username,
        "password_mutual": chap.mutual_password.reveal(),
    }


def _flag(value: bool) -> str:  # noqa: FBT001 - converts a boolean to text
    return "1" if value else "0"

"""Test doubles of the tools, configfs, the disks in sysfs and mountinfo, for the adapters."""

from __future__ import annotations

import os
import shutil
import struct
from typing import TYPE_CHECKING

from zfsilod.host.configfs import Configfs
from zfsilod.host.mountinfo import MountEntry
from zfsilod.host.nvme_keyring import KeyCalls
from zfsilod.host.run import Completed, Runner
from zfsilod.model.chap import Chap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UID = "0123456789abcdef0123456789abcdef"
GROUPS = ("acls", "np", "lun", "namespaces", "allowed_hosts", "subsystems")
TARGET = f"iqn.2026-01.org.zfsilo:give:{UID}"
INITIATOR = "iqn.2024-01.lab.take:host"


def chap(number: int = 1) -> Chap:
    """Return CHAP secrets; each number has others."""
    return Chap(
        username="usr",
        password=f"initiator-{number}",
        mutual_username="musr",
        mutual_password=f"target-{number}",
    )


class ScriptedRunner(Runner):
    """Answers the commands of a script in their order: (command, exit code, stdout, stderr).

    Any other command fails the test. `effects` has functions that a command calls.
    """

    def __init__(self, *script: tuple[str, int, str, str]) -> None:
        super().__init__()
        self.script = list(script)
        self.effects: dict[str, Callable[[], object]] = {}

    def __call__(
        self,
        argv: list[str],
        *,
        timeout_s: float,
        input: str | bytes = "",  # noqa: A002 - as in Runner
        ok: tuple[int, ...] = (0,),
        inherit: tuple[int, ...] = (),
    ) -> Completed:
        """Answer the next command of the script; a descriptor is shown as what it is open on."""
        assert timeout_s > 0
        opened = {f"/proc/self/fd/{number}/.": f"/proc/self/fd/{number}" for number in inherit}
        argv = [os.readlink(opened[word]) if word in opened else word for word in argv]  # noqa: PTH115
        command = " ".join(argv)
        assert self.script, f"command after the end of the script: {command}"
        expected, rc, stdout, stderr = self.script.pop(0)
        assert command == expected
        if command in self.effects:
            self.effects[command]()
        completed = Completed(tuple(argv), rc, stdout, stderr)
        if rc not in ok:
            raise completed.failed()
        return completed

    def call(self, function: Callable[[], None], command: str, *, timeout_s: float) -> Completed:
        """Answer a system call by the command that would do the same."""
        return self(command.split(" "), timeout_s=timeout_s, ok=tuple(range(256)))


class Interrupted(Exception):
    """The worker was killed at this change."""


class FakeConfigfs(Configfs):
    """The objects of LIO in a temporary directory, with the attributes and rules of the kernel.

    `calls` is the number of changes that succeed; the next one raises Interrupted.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.folder = root
        self.calls: int | None = None
        for folder in ("core/alua", "iscsi/discovery_auth"):
            (root / folder).mkdir(parents=True)
        (root / "dbroot").write_text(f"{root.parent}/var/target\n")

    def _count(self) -> None:
        if self.calls is not None:
            if self.calls == 0:
                raise Interrupted
            self.calls -= 1

    def make(self, path: str) -> None:
        """Make an object with its attributes."""
        self._count()
        new = not self.has(path)
        super().make(path)
        if new:
            for name, value in _attributes(path).items():
                (self.folder / path / name).parent.mkdir(exist_ok=True)
                (self.folder / path / name).write_text(value)

    def remove(self, path: str) -> None:
        """Remove an object. Raises Busy while objects in it or links to it are left."""
        self._count()
        folder = self.folder / path
        if self._children(folder) or folder in {link.resolve() for link in self._links()}:
            super().remove(path)  # raises ENOTEMPTY, as the kernel does
        elif folder.exists():
            shutil.rmtree(folder)

    def write(self, path: str, value: str) -> None:
        """Set an attribute, and those that the kernel sets with it."""
        self._count()
        assert "\n" not in value
        if path.endswith("vpd_unit_serial"):
            value = f"T10 VPD Unit Serial Number: {value}"
        if path.endswith("/control"):
            device = value.removeprefix("udev_path=")
            info = self.folder / path.replace("/control", "/info")
            info.write_text(f"iBlock device: zd0  UDEV PATH: {device}  readonly: 0\n")
        if path.endswith("res_aptpl_metadata"):  # each write adds a registration
            value = f"{(self.folder / path).read_text()}{value}\n"
        os.truncate(self.folder / path, 0)
        super().write(path, value)

    def link(self, path: str, to: str) -> None:
        """Link an object; a LUN is mapped read-only first, as prod_mode_write_protect says."""
        self._count()
        super().link(path, to)
        if "/acls/" in path:
            (self.folder / path).with_name("write_protect").write_text("1\n")

    def unlink(self, path: str) -> None:
        """Remove a link."""
        self._count()
        super().unlink(path)
        if "/acls/" in path:
            (self.folder / path).with_name("write_protect").write_text("\n")

    def tree(self) -> set[str]:
        """Return all directories and links but the shared directory of the backstores."""
        paths = {path for path in self.folder.rglob("*") if path.is_dir() or path.is_symlink()}
        return {str(path) for path in paths - {self.folder / "core/iblock_0"}}

    def _links(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_symlink()]

    def _children(self, folder: Path) -> list[Path]:
        """Return the objects and links that were made in an object."""
        own = {name.partition("/")[0] for name in _attributes(str(folder.relative_to(self.folder)))}
        if not folder.exists():
            return []
        groups = [folder / name for name in GROUPS]
        grouped = [path for group in groups if group.is_dir() for path in group.iterdir()]
        return [path for path in folder.iterdir() if path.name not in own] + [
            path for path in grouped if path.name != ".keep"
        ]


def _attributes(path: str) -> dict[str, str]:
    """Return the attributes of a new object with their values, as Linux 6.12 has them."""
    parts = path.split("/")
    match parts:
        case ["core", _, _]:
            return {
                "control": "",
                "enable": "0\n",
                "info": "",
                "udev_path": "\n",
                "attrib/emulate_tpu": "0\n",
                "pr/res_aptpl_metadata": "",
                "wwn/vpd_unit_serial": "T10 VPD Unit Serial Number: \n",
                "wwn/vendor_id": "LIO-ORG\n",
                "wwn/product_id": "IBLOCK\n",
            }
        case ["iscsi", _, "tpgt_1"]:
            names = ("authentication", "demo_mode_discovery", "demo_mode_write_protect")
            zeros = ("cache_dynamic_acls", "generate_node_acls", "prod_mode_write_protect")
            groups = {f"{name}/.keep": "" for name in ("acls", "np", "lun")}
            return (
                groups
                | {"enable": "0\n"}
                | {f"attrib/{name}": "1\n" if name in names else "0\n" for name in names + zeros}
            )
        case [*_, "acls", _]:
            secrets = ("userid", "password", "userid_mutual", "password_mutual")
            info = f"No active iSCSI Session for Initiator Endpoint: {parts[-1]}\n"
            return {"info": info} | {f"auth/{name}": "\n" for name in secrets}
        case [*_, "acls", _, "lun_0"]:
            return {"write_protect": "\n"}
    return _nvme_attributes(parts)


def _nvme_attributes(parts: list[str]) -> dict[str, str]:
    match parts:
        case ["subsystems", _]:
            groups = {f"{name}/.keep": "" for name in ("namespaces", "allowed_hosts")}
            identity = {"attr_serial": "0d8f4a2b1c3e5f60\n", "attr_model": "Linux\n"}
            ids = {"attr_cntlid_min": "1\n", "attr_cntlid_max": "65519\n"}
            return groups | identity | ids | {"attr_allow_any_host": "0\n"}
        case ["subsystems", _, "namespaces", _]:
            zeros = {"device_uuid": "0-0\n", "device_nguid": "0-0\n", "enable": "0\n"}
            return {"device_path": "(null)\n"} | zeros
        case ["hosts", _]:
            return {"dhchap_key": "\n", "dhchap_ctrl_key": "\n"}
        case ["ports", _]:
            names = ("addr_trtype", "addr_adrfam", "addr_traddr", "addr_trsvcid")
            return {
                "subsystems/.keep": "",
                "addr_tsas": "none\n",
                "addr_treq": "not specified\n",
            } | dict.fromkeys(names, "\n")
    return {}


class FakeNvmetfs(FakeConfigfs):
    """The objects of nvmet in the same way."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for folder in ("subsystems", "hosts", "ports"):
            (root / folder).mkdir()

    def protect(self, path: str) -> None:
        """Let only root read an attribute."""
        self._count()
        super().protect(path)


class FakeKeyCalls(KeyCalls):
    """The keyring of NVMe/TCP, as its system calls and /proc/keys show it."""

    KEYRING = 0x7A

    def __init__(self, proc: Path) -> None:
        super().__init__()
        self.proc = proc
        self.keys, self.note = proc / "keys", proc / "run/note"
        proc.mkdir(parents=True, exist_ok=True)
        self.keys.write_text(
            "21c82087 I--Q---     1 perm 0c030000     0 65534 keyring   .user_reg: 4\n"
            f"{self.KEYRING:08x} I------     1 perm 1f0f0000     0     0 keyring   .nvme: empty\n"
        )
        self.payloads: dict[int, bytes] = {}
        self.descriptions: dict[int, str] = {}
        self.log: list[tuple[str, int]] = []
        self.fail: dict[str, int] = {}  # errno of a call

    def hide_keyring(self) -> None:
        """Be a kernel without the module."""
        self.keys.write_text("")

    def add(self, keyring: int, description: str, payload: bytes) -> int:
        self._answer("add", keyring)
        serial = len(self.descriptions) + 1
        self.payloads[serial], self.descriptions[serial] = payload, description
        return serial

    def unlink(self, keyring: int, serial: int) -> None:
        self._answer("unlink", keyring, serial)
        del self.payloads[serial]

    def serials(self, keyring: int) -> list[int]:
        assert keyring == self.KEYRING
        return list(self.payloads)

    def describe(self, serial: int) -> tuple[str, str]:
        if number := self.fail.get("describe"):
            raise OSError(number, os.strerror(number))
        if serial == self.KEYRING:
            return "keyring", ".nvme"
        return "psk", self.descriptions[serial]

    def _answer(self, call: str, keyring: int, serial: int = 0) -> None:
        assert keyring == self.KEYRING
        self.log.append((call, serial))
        if number := self.fail.get(call):
            raise OSError(number, os.strerror(number))


class NetlinkKernel:
    """The kernel's side of netlink for session 1: takes and answers struct iscsi_uevent."""

    HANDLE = 7

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.result = 0

    def answer(self, kind: int, arguments: bytes) -> int:
        """Do what an ISCSI_UEVENT_* asks for, and return 0 or a negative errno."""
        raise NotImplementedError

    def send(self, message: bytes) -> None:
        kind, _error, handle, sid, cid = struct.unpack_from("=IIQII", message, 16)
        assert (handle, sid, cid) == (self.HANDLE, 1, 0)
        self.calls.append(kind)
        self.result = self.answer(kind, message[16 + 24 :])

    def recv(self, _size: int) -> bytes:
        return bytes(16) + struct.pack("=IIQ24xi4x", 0, 0, self.HANDLE, self.result)

    def close(self) -> None:
        """Do nothing; a socket has this method."""


class FakeSys:
    """Sessions and their disks in a temporary sysfs, with files as device nodes."""

    def __init__(self, root: Path) -> None:
        self.sys, self.dev, self.run = root / "sys", root / "dev", root / "run"
        for folder in (self.sys / "class/iscsi_session", self.dev, self.run):
            folder.mkdir(parents=True)

    def login(
        self,
        *,
        target: str = TARGET,
        serial: str = UID,
        size_bytes: int = 64 << 20,
        sid: int = 1,
        state: str = "LOGGED_IN",
        disk: str = "sda",
        number: str = "8:0",
    ) -> Path:
        """Add a session with a disk, and return its directory."""
        session = self.sys / f"class/iscsi_session/session{sid}"
        device = session / f"device/target{sid}:0:0/{sid}:0:0:0"
        block = device / "block" / disk
        block.mkdir(parents=True)
        (session / "targetname").write_text(f"{target}\n")
        (session / "state").write_text(f"{state}\n")
        (session / "recovery_tmo").write_text("120\n")
        (device / "vpd_pg80").write_bytes(
            b"\0\x80\0" + bytes([len(serial) + 1]) + serial.encode() + b"\0"
        )
        (device / "rescan").write_text("")
        (device / "delete").write_text("")
        (block / "device").symlink_to(device)
        (block / "size").write_text(f"{size_bytes // 512}\n")
        (block / "ro").write_text("0\n")
        (block / "dev").write_text(f"{number}\n")
        (self.sys / "dev/block").mkdir(parents=True, exist_ok=True)
        (self.sys / "dev/block" / number).symlink_to(block)
        with (self.dev / disk).open("wb") as file:
            file.truncate(size_bytes)
        return session

    def logout(self, session: Path, *, number: str = "8:0") -> None:
        """Remove a session, its disk and its device node; a map loses the path."""
        for node in session.glob("device/target*/*/block/*"):
            (self.dev / node.name).unlink()
            for path in self.sys.glob(f"class/block/dm-*/slaves/{node.name}"):
                path.unlink()
        (self.sys / "dev/block" / number).unlink(missing_ok=True)
        shutil.rmtree(session)

    def add_portal(self, sid: int, portal: str) -> None:
        """Let a session be at a portal."""
        connection = self.sys / f"class/iscsi_connection/connection{sid}:0"
        connection.mkdir(parents=True, exist_ok=True)
        address, _colon, port = portal.rpartition(":")
        (connection / "persistent_address").write_text(f"{address}\n")
        (connection / "persistent_port").write_text(f"{port}\n")

    def join(self, disk: str, *, serial: str = UID, name: str = "dm-0") -> None:
        """Make a disk a path of a map, which is made with the first one."""
        joined = self.sys / "class/block" / name
        (block,) = self.sys.glob(f"class/iscsi_session/*/device/*/*/block/{disk}")
        (joined / "slaves").mkdir(parents=True, exist_ok=True)
        (joined / "dm").mkdir(exist_ok=True)
        (joined / "dm/uuid").write_text(f"mpath-36001405{serial[:25]}\n")
        (joined / "dm/name").write_text("chosen\n")
        (joined / "dev").write_text("253:0\n")
        (joined / "ro").write_text("0\n")
        (joined / "size").write_text((block / "size").read_text())
        (joined / "slaves" / disk).symlink_to(block)
        (block / "holders" / name).mkdir(parents=True)
        (self.sys / "module/dm_multipath").mkdir(parents=True, exist_ok=True)
        (self.dev / name).touch()

    def unjoin(self, name: str = "dm-0") -> None:
        """Remove a map."""
        shutil.rmtree(self.sys / "class/block" / name)
        for holder in self.sys.glob(f"class/iscsi_session/*/device/*/*/block/*/holders/{name}"):
            holder.rmdir()
        (self.dev / name).unlink()


def mount(
    path: str,
    *,
    number: str = "8:0",
    options: str = "rw,relatime",
    root: str = "/",
    kind: str = "ext4",
    source: str = "/dev/sda",
) -> MountEntry:
    """Return a parsed line of mountinfo."""
    escaped = path.replace(" ", r"\040")
    return MountEntry(f"39 26 {number} {root} {escaped} {options} shared:4 - {kind} {source} rw")

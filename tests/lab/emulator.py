"""The emulated hardware as data, and the emulator's command line."""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.errors import EmulatorError
from tests.lab.images.recipe import HOSTS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.images.build import Images

PROGRAM = "qemu-system-x86_64"
# Without unused devices, which cost time for drivers and udev.
MACHINE = "q35,sata=off,smbus=off,i8042=off,vmport=off"
CODE = "code"
CODE_DISK_SIZE = "512M"
# Drivers for features that the emulated processor lacks, or that only cost time.
BLACKLIST = (
    "aesni_intel",
    "crc32_pclmul",
    "crct10dif_pclmul",
    "ghash_clmulni_intel",
    "i2c_i801",
    "iTCO_wdt",
    "kvm",
    "kvm_amd",
    "lpc_ich",
    "powernow_k8",
    "psmouse",
    "rapl",
    "sha512_ssse3",
)
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 audit=0 mitigations=off tsc=reliable random.trust_cpu=on "
    # Disable hardening and debugging of Debian's kernel, a quarter of the boot time here.
    "init_on_alloc=0 randomize_kstack_offset=off hardened_usercopy=off nokaslr "
    "kfence.sample_interval=0 rcupdate.rcu_expedited=1 8250.nr_uarts=1 "
    # Otherwise a race with the renaming of interfaces sometimes leaves one of them down.
    "net.ifnames=0 "
    f"modprobe.blacklist={','.join(BLACKLIST)}"
)


@dataclass(frozen=True)
class Hardware:
    """The hardware of a machine; a snapshot can only be restored on the same hardware."""

    name: str
    memory_mib: int
    processors: int
    data_disks: tuple[str, ...]

    @property
    def number(self) -> int:
        """The last byte of its IP address and MAC addresses."""
        return int(HOSTS[self.name].rpartition(".")[2])

    @property
    def disks(self) -> dict[str, str]:
        """The sizes of the disks except the root disk, by their serial in the guest."""
        return {
            **{f"tank{index}": size for index, size in enumerate(self.data_disks)},
            CODE: CODE_DISK_SIZE,
        }

    @property
    def machine_id(self) -> str:
        """The machine id, the same after every boot."""
        return f"{self.number:02x}" * 16


GIVE = Hardware("give", memory_mib=2048, processors=2, data_disks=("8G",))
TAKE = Hardware("take", memory_mib=1024, processors=2, data_disks=())


@dataclass(frozen=True)
class MachinePaths:
    """Overlays, sockets and forwarded ports of a machine, and the LAN socket of its peer."""

    folder: Path
    lan: Path
    peer_lan: Path
    forwards: tuple[tuple[int, int], ...]

    def disk(self, name: str) -> Path:
        """The overlay of a disk."""
        return self.folder / f"{name}.qcow2"

    @property
    def agent(self) -> Path:
        """The socket of the agent inside."""
        return self.folder / "agent"

    @property
    def monitor(self) -> Path:
        """The socket of the emulator's monitor."""
        return self.folder / "qmp"

    @property
    def console(self) -> Path:
        """The output of the machine's serial console."""
        return self.folder / "console"

    @property
    def log(self) -> Path:
        """The messages of the emulator."""
        return self.folder / "emulator.log"

    @property
    def pid(self) -> Path:
        """The emulator's process id."""
        return self.folder / "pid"


def processor() -> list[str]:
    """Emulation in software, unless $ZFSILO_LAB_ACCEL names an accelerator (`kvm`)."""
    chosen = os.environ.get("ZFSILO_LAB_ACCEL")
    if chosen:
        return ["-accel", chosen, "-cpu", "host"]
    # Only the features that programs require: a kernel uses wide vectors, `rep movsb` and SMAP if
    # they exist, and these are slow to emulate.
    return ["-accel", "tcg,thread=multi", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"]


@functools.cache
def emulator_version() -> str:
    """The emulator's version; a snapshot can only be restored by the same version."""
    try:
        done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise EmulatorError(f"{PROGRAM} is not installed: run `python3 tests/setup lab`") from error
    return done.stdout.splitlines()[0]


def board(hardware: Hardware) -> list[str]:
    """The options for processor, memory and devices other than drives and networks."""
    return [
        *("-name", hardware.name, "-M", MACHINE, *processor()),
        *("-m", str(hardware.memory_mib), "-smp", str(hardware.processors)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
    ]


def kernel(hardware: Hardware, images: Images) -> list[str]:
    """The options that boot the kernel directly."""
    arguments = (
        f"{KERNEL_ARGUMENTS} systemd.hostname={hardware.name} lab.machine_id={hardware.machine_id}"
    )
    return ["-kernel", str(images.kernel), "-initrd", str(images.initrd), "-append", arguments]


def drives(hardware: Hardware, paths: MachinePaths) -> list[str]:
    """The options for the root disk, the data disks and the disk with the code under test."""
    words = []
    for name in ("root", *hardware.disks):
        # cache=unsafe loses data in a power failure of the host, not when the emulator is killed.
        file = f"id={name},file={paths.disk(name)},if=none,cache=unsafe,discard=unmap,format=qcow2"
        words += ["-drive", file, "-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return words


def networks(hardware: Hardware, paths: MachinePaths) -> list[str]:
    """The options for the network between the machines and for the ports forwarded to this host."""
    # With datagrams the machines may start in any order, and either may restart.
    lan = (
        f"dgram,id=lan,local.type=unix,local.path={paths.lan},"
        f"remote.type=unix,remote.path={paths.peer_lan}"
    )
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in paths.forwards)
    card = "virtio-net-pci,romfile=,netdev"
    mac = "mac=52:54:00:6c"
    return [
        *("-netdev", lan, "-device", f"{card}=lan,{mac}:01:{hardware.number:02x}"),
        *("-netdev", f"user,id=nat,restrict=on{forwards}"),
        *("-device", f"{card}=nat,{mac}:02:{hardware.number:02x}"),
    ]


def channels(paths: MachinePaths) -> list[str]:
    """The options for console, monitor, agent and process id file."""
    return [
        *("-serial", f"file:{paths.console}"),
        *("-qmp", f"unix:{paths.monitor},server=on,wait=off"),
        *("-chardev", f"socket,id=agent,path={paths.agent},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=lab.agent"),
        *("-pidfile", str(paths.pid)),
    ]


def command_line(hardware: Hardware, images: Images, paths: MachinePaths) -> list[str]:
    """The whole command line; with fixed paths also part of every snapshot's key."""
    return [
        PROGRAM,
        *board(hardware),
        *kernel(hardware, images),
        *drives(hardware, paths),
        *networks(hardware, paths),
        *channels(paths),
    ]

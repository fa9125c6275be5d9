"""The emulated hardware, as data and as the emulator's command line."""

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
# Without the parts that nothing here uses: each is a driver to load and devices for udev.
MACHINE = "q35,sata=off,smbus=off,i8042=off,vmport=off"
CODE = "code"
CODE_DISK_SIZE = "512M"
# Emulated processors lack what these drive, or the drivers only cost time.
BLACKLIST = (
    "aesni_intel", "crc32_pclmul", "crct10dif_pclmul", "ghash_clmulni_intel", "i2c_i801",
    "iTCO_wdt", "kvm", "kvm_amd", "lpc_ich", "powernow_k8", "psmouse", "rapl", "sha512_ssse3",
)  # fmt: skip
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 audit=0 mitigations=off tsc=reliable random.trust_cpu=on "
    # Hardening and debugging aids of Debian's kernel that cost a quarter of the boot here.
    "init_on_alloc=0 randomize_kstack_offset=off hardened_usercopy=off nokaslr "
    "kfence.sample_interval=0 rcupdate.rcu_expedited=1 8250.nr_uarts=1 "
    # Without it a race while interfaces are renamed now and then left one of them down.
    "net.ifnames=0 "
    f"modprobe.blacklist={','.join(BLACKLIST)}"
)


@dataclass(frozen=True)
class Hardware:
    """What a machine is made of; a snapshot fits only the hardware it was taken on."""

    name: str
    memory_mib: int
    processors: int
    data_disks: tuple[str, ...]

    @property
    def number(self) -> int:
        """The last part of its address and of its MACs."""
        return int(HOSTS[self.name].rpartition(".")[2])

    @property
    def disks(self) -> dict[str, str]:
        """The sizes of the disks besides the root, by the serial that the guest sees."""
        return {
            **{f"tank{index}": size for index, size in enumerate(self.data_disks)},
            CODE: CODE_DISK_SIZE,
        }

    @property
    def machine_id(self) -> str:
        """The machine id, fixed so that it is the same after every boot."""
        return f"{self.number:02x}" * 16


GIVE = Hardware("give", memory_mib=2048, processors=2, data_disks=("8G",))
TAKE = Hardware("take", memory_mib=1024, processors=2, data_disks=())


@dataclass(frozen=True)
class SandboxPart:
    """Where a machine keeps its overlays and sockets, and how it reaches the other one."""

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
        """What the machine's kernel printed."""
        return self.folder / "console"

    @property
    def log(self) -> Path:
        """What the emulator itself complained about."""
        return self.folder / "emulator.log"

    @property
    def pid(self) -> Path:
        """The emulator's process id."""
        return self.folder / "pid"


def processor() -> list[str]:
    """Emulation, unless $ZFSILO_LAB_ACCEL says that this machine can do better (`kvm`)."""
    chosen = os.environ.get("ZFSILO_LAB_ACCEL")
    if chosen:
        return ["-accel", chosen, "-cpu", "host"]
    # What software may take for granted and no more: wide vectors, `rep movsb` and user space
    # access prevention are a burden to an emulator, and a kernel that finds them uses them.
    return ["-accel", "tcg,thread=multi", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"]


@functools.cache
def emulator_version() -> str:
    """The emulator's version; snapshots of one version are not for another."""
    try:
        done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise EmulatorError(f"no {PROGRAM} here: run `python3 tests/setup lab`") from error
    return done.stdout.splitlines()[0]


def board(hardware: Hardware) -> list[str]:
    """The options for processor, memory and what else is not a drive or a network."""
    return [
        "-name", hardware.name, "-M", MACHINE, *processor(),
        "-m", str(hardware.memory_mib), "-smp", str(hardware.processors),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
    ]  # fmt: skip


def kernel(hardware: Hardware, images: Images) -> list[str]:
    """The options that boot the kernel directly."""
    arguments = (
        f"{KERNEL_ARGUMENTS} systemd.hostname={hardware.name} lab.machine_id={hardware.machine_id}"
    )
    return ["-kernel", str(images.kernel), "-initrd", str(images.initrd), "-append", arguments]


def drives(hardware: Hardware, place: SandboxPart) -> list[str]:
    """The options for the root disk, the data disks and the disk with the code under test."""
    words = []
    for name in ("root", *hardware.disks):
        # Unsafe for a host that loses power; here only the emulator ever dies.
        file = f"id={name},file={place.disk(name)},if=none,cache=unsafe,discard=unmap,format=qcow2"
        words += ["-drive", file, "-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return words


def networks(hardware: Hardware, place: SandboxPart) -> list[str]:
    """The options for the network between the machines and for the ports forwarded to this host."""
    # Datagrams need no order of starting, and either side may die and come back.
    lan = (
        f"dgram,id=lan,local.type=unix,local.path={place.lan},"
        f"remote.type=unix,remote.path={place.peer_lan}"
    )
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in place.forwards)
    card = "virtio-net-pci,romfile=,netdev"
    mac = "mac=52:54:00:6c"
    return [
        "-netdev", lan, "-device", f"{card}=lan,{mac}:01:{hardware.number:02x}",
        "-netdev", f"user,id=nat,restrict=on{forwards}",
        "-device", f"{card}=nat,{mac}:02:{hardware.number:02x}",
    ]  # fmt: skip


def channels(place: SandboxPart) -> list[str]:
    """The options for everything that this host reads and writes besides disks and networks."""
    return [
        "-serial", f"file:{place.console}",
        "-qmp", f"unix:{place.monitor},server=on,wait=off",
        "-chardev", f"socket,id=agent,path={place.agent},server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=lab.agent",
        "-pidfile", str(place.pid),
    ]  # fmt: skip


def command_line(hardware: Hardware, images: Images, place: SandboxPart) -> list[str]:
    """The whole command line; also part of every snapshot's key, with a made-up place."""
    return [
        PROGRAM,
        *board(hardware),
        *kernel(hardware, images),
        *drives(hardware, place),
        *networks(hardware, place),
        *channels(place),
    ]

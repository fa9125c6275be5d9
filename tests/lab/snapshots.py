"""Snapshots of running machines: created once, cached, restored by every test class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import install
from tests.lab.emulator import GIVE, TAKE, Hardware, MachinePaths, command_line, emulator_version
from tests.lab.images.build import Images, images
from tests.lab.pair import boot_pair, restore_pair, save_pair
from tests.setup.cache import clear_old, digest, files_digest, identity, product
from tests.setup.say import stage

if TYPE_CHECKING:
    from tests.lab.machine import Machine

GIVE_MODULES = (
    "zfs target_core_mod target_core_iblock iscsi_target_mod nvmet nvmet-tcp iscsi_tcp nvme-tcp xfs"
)
TAKE_MODULES = "iscsi_tcp nvme-tcp xfs"
INITIATORS = {name: f"iqn.2024-01.lab.{name}:host" for name in ("give", "take")}
POOL = "tank"
# Number of cached snapshots of each kind: enough to switch between two states of the project.
KEPT = 3

WARM_UP = {
    "give": f"""
modprobe -a {GIVE_MODULES}
zpool create -o ashift=12 -O compression=lz4 -O mountpoint=none {POOL} /dev/disk/by-id/virtio-tank0
zpool status {POOL}
""",
    "take": f"modprobe -a {TAKE_MODULES}",
}
# Reads programs into the snapshot's page cache, so that tests need not read them.
WARM_UP_BOTH = """
iscsiadm -m session || test $? = 21
nvme list
python3 -c 'import asyncio, ssl, json, sqlite3, subprocess'
ping -c 1 -W 5 give
ping -c 1 -W 5 take
udevadm settle
sync
"""


def booted() -> Path:
    """The snapshot of two running machines with modules and pool, without zfsilo."""
    # Fails first if there is no emulator, before images are built.
    emulator_version()
    boot_images = images()

    def build(draft: Path) -> None:
        with stage("lab: booting both machines"):
            pair = boot_pair()
        with pair:
            with stage("lab: modules, pool, names"):
                pair.both(warm_up)
            with stage("lab: saving both machines"):
                save_pair(pair, draft)

    place = product("booted", digest(machines_key(boot_images), WARM_UP, WARM_UP_BOTH), build)
    clear_old("booted", keep=KEPT)
    return place


def ready() -> Path:
    """The snapshot `booted` with zfsilo installed, configured and started on both machines."""
    base = booted()
    installed = install.tree(images().buildroot)

    def build(draft: Path) -> None:
        with restore_pair(base, code=installed / install.IMAGE) as pair:
            with stage("lab: installing zfsilo on both machines"):
                pair.both(install.copy_tree)
            with stage("lab: configuring and starting the daemons"):
                install.configure(pair.give, pair.take)
            pair.both(lambda machine: machine.run("sync"))
            with stage("lab: saving both machines"):
                save_pair(pair, draft)

    installer = files_digest(Path(install.__file__).parent, Path(install.__file__).name)
    key = digest(identity(base), identity(installed), installer)
    place = product("ready", key, build)
    clear_old("ready", keep=KEPT)
    clear_old("install", keep=KEPT)
    return place


def warm_up(machine: Machine) -> None:
    """Load modules, create the pool on give, and fill the page cache."""
    name = INITIATORS[machine.name]
    machine.put("/etc/iscsi/initiatorname.iscsi", f"InitiatorName={name}\n".encode(), 0o600)
    machine.sh(WARM_UP[machine.name], timeout_s=180)
    machine.sh(WARM_UP_BOTH, timeout_s=180)


def machines_key(boot_images: Images) -> str:
    """A digest of the dependencies of saved memory: emulator, hardware, kernel, root image."""

    def line(hardware: Hardware) -> list[str]:
        fixed = Path("/")
        return command_line(hardware, boot_images, MachinePaths(fixed, fixed, fixed, ()))

    return digest(emulator_version(), identity(boot_images.folder), line(GIVE), line(TAKE))

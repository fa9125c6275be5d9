"""Contents of the images: package lists, units and settings, as plain data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GUEST_FILES = Path(__file__).parent / "guest"
RELEASES = {"bookworm": "python3.11", "trixie": "python3.13"}
DEFAULT_RELEASE = "trixie"
HOSTS = {"give": "10.77.0.1", "take": "10.77.0.2"}

# Compilers and headers stay in this root, which never boots.
BUILD_PACKAGES = (
    "bzip2",
    "ca-certificates",
    "dkms",
    "file",
    "gcc",
    "kmod",
    "libc6-dev",
    "libsystemd-dev",
    "linux-headers-cloud-amd64",
    "lsb-release",
    "make",
    "perl",
    "pkg-config",
    "python3-dev",
    "python3-pip",
    "xz-utils",
)

GUEST_PACKAGES = (
    "dbus",
    "dmsetup",
    "e2fsprogs",
    "fio",
    "iproute2",
    "iputils-ping",
    "keyutils",
    "kmod",
    "ktls-utils",
    "nvme-cli",
    "open-iscsi",
    "openssh-server",
    "polkitd",
    "procps",
    "python3",
    "python3-rtslib-fb",
    "strace",
    "systemd",
    "systemd-sysv",
    "targetcli-fb",
    "udev",
    "util-linux",
    "xfsprogs",
    "zfsutils-linux",
)

DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
)

# Loaded by the initramfs, in this order, to drive the root disk.
BOOT_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
)

ENABLED_UNITS = ("lab-agent.service", "lab-net.service", "ssh.socket")
# Started by its socket on demand.
DISABLED_UNITS = ("ssh.service",)

# Units that cost seconds under emulation and that no test needs. The units of ZFS and open-iscsi
# are not masked: they import pools and log in as on any Debian.
MASKED_UNITS = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "getty@tty1.service",
    "ldconfig.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "nvmefc-boot-connections.service",
    "nvmf-autoconnect.service",
    "proc-sys-fs-binfmt_misc.automount",
    "rtslib-fb-targetctl.service",
    "serial-getty@hvc0.service",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-boot-system-token.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-pcrmachine.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-udev-load-credentials.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
)

# The journal is on disk, so that it has the messages from before a power cut.
JOURNALD = "[Journal]\nStorage=persistent\nSystemMaxUse=48M\nSyncIntervalSec=2s\nRateLimitBurst=0\n"

# At boot udev probes every device again; two thirds of them have no driver to load and no name.
UDEV_TRIGGER = (
    "[Service]\nExecStart=\nExecStart=-udevadm trigger --type=all --action=add"
    " --prioritized-subsystem=module,block,net"
    + "".join(
        f" --subsystem-nomatch={subsystem}"
        for subsystem in ("acpi", "bdi", "clockevents", "memory", "tty", "vc", "workqueue")
    )
    + "\n"
)

TEXT_FILES = {
    "etc/fstab": "",
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost\n"
    + "".join(f"{address} {name}\n" for name, address in HOSTS.items()),
    "etc/modules-load.d/lab.conf": "virtio_net\nvirtio_console\n",
    # The default is half of the memory, which would enlarge the snapshots.
    "etc/modprobe.d/lab.conf": "options zfs zfs_arc_max=134217728\n",
    "etc/ssh/sshd_config.d/lab.conf": "UseDNS no\nUsePAM no\nPrintMotd no\n",
    "etc/systemd/journald.conf.d/lab.conf": JOURNALD,
    "etc/systemd/system/systemd-udev-trigger.service.d/lab.conf": UDEV_TRIGGER,
    # Loading takes seconds; take imports no pool at boot, there the first command loads it.
    "etc/systemd/system/zfs-load-module.service.d/lab.conf": "[Unit]\nConditionHost=give\n",
}

# Links to /dev/null: generators that cost time, one of them by loading network drivers.
MASKED_GENERATORS = (
    "systemd-ssh-generator",
    "systemd-gpt-auto-generator",
    "systemd-tpm2-generator",
)

MKE2FS_OPTIONS = (
    "-t",
    "ext4",
    "-J",
    "size=16",
    "-O",
    "^metadata_csum,^64bit",
    "-E",
    "lazy_itable_init=0,lazy_journal_init=0",
    "-L",
    "labroot",
)
ROOT_SIZE = "3G"


@dataclass(frozen=True)
class Release:
    """A Debian release to run in the lab."""

    name: str

    @property
    def python(self) -> str:
        """The name of its Python interpreter, as in folder names."""
        return RELEASES[self.name]


def chosen_release() -> Release:
    """The release that $ZFSILO_LAB_RELEASE names, or the default one."""
    name = os.environ.get("ZFSILO_LAB_RELEASE", DEFAULT_RELEASE)
    if name not in RELEASES:
        raise ValueError(f"ZFSILO_LAB_RELEASE={name}: must be one of {', '.join(RELEASES)}")
    return Release(name)

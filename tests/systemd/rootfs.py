"""The root of the systemd under test: an overlay on the host's root, and its own mounts."""

import os
import shutil
import socket
import stat
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.systemd import linux

# Units of the distribution that change the host's kernel, need hardware or only cost time. Units
# that the host enabled are hidden with its /etc/systemd/system.
MASKED_UNITS = """
    modprobe@.service systemd-modules-load.service systemd-sysctl.service systemd-binfmt.service
    proc-sys-fs-binfmt_misc.automount sys-kernel-config.mount sys-kernel-debug.mount
    sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount
    systemd-random-seed.service systemd-pstore.service systemd-journald-audit.socket
    systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket
    systemd-udev-trigger.service kmod-static-nodes.service systemd-tmpfiles-setup-dev.service

    systemd-logind.service systemd-remount-fs.service systemd-firstboot.service tmp.mount
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-update-done.service
    systemd-ask-password-console.path systemd-ask-password-wall.path getty.target
    systemd-initctl.socket systemd-fsckd.socket systemd-hwdb-update.service ldconfig.service
    systemd-journal-catalog-update.service systemd-networkd.service systemd-resolved.service
    systemd-timesyncd.service systemd-tmpfiles-clean.timer swap.target cryptsetup.target
    integritysetup.target veritysetup.target
""".split()  # noqa: SIM905 - one name per line would fill a page

# Each generator costs a process at boot and at every daemon-reload; tests may need fstab.
KEPT_GENERATORS = ("systemd-fstab-generator",)

# Folders that start empty, without the host's content.
EMPTY_FOLDERS = ("etc/systemd/system", "var/log", "var/tmp")

# Compress=no: scan_secrets searches plain bytes. No rate limit: no message is lost.
JOURNALD = (
    "[Journal]\nStorage=persistent\nCompress=no\nRateLimitBurst=0\nForwardToWall=no\nAudit=no\n"
)

# Empty at every boot; systemd-tmpfiles removes files there.
VOLATILE = ("/dev/", "/run/", "/tmp/")

CHARACTER_NODES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
    "fuse": (10, 229),
    "loop-control": (10, 237),
}
LOOP_NODES = 64

SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")


@dataclass(frozen=True)
class MachineSpec:
    """The description of a machine for the reaper; paths are the host's except inner ones."""

    name: str
    state: str  # An empty folder; the reaper mounts a tmpfs there, in its own mount namespace.
    size: str
    trees: list[str]  # Copied into the upper layer before the first boot.
    binds: list[tuple[str, str, bool]]  # (host path, inner path, read-only)

    @property
    def upper(self) -> Path:
        """The layer with all changes, which survives reboots."""
        return Path(self.state, "upper")

    @property
    def root(self) -> Path:
        """The mount point of the overlay."""
        return Path(self.state, "root")

    @property
    def host(self) -> Path:
        """Mounted as /run/host inside."""
        return Path(self.state, "host")


def prepare(spec: MachineSpec) -> None:
    """Create the layers and mount the overlay, once for all boots."""
    os.umask(0o022)
    linux.mount("none", "/", flags=linux.MS_PRIVATE | linux.MS_REC)
    linux.mount("tmpfs", spec.state, fstype="tmpfs", options=f"mode=0755,size={spec.size}")
    for folder in (spec.upper, spec.root, spec.host, Path(spec.state, "work")):
        folder.mkdir(mode=0o755)
    _fill_upper(spec)
    layers = f"lowerdir=/,upperdir={spec.upper},workdir={spec.state}/work"
    linux.mount("overlay", spec.root, fstype="overlay", options=layers)


def _fill_upper(spec: MachineSpec) -> None:
    upper = spec.upper
    for folder in EMPTY_FOLDERS:
        os.setxattr(_upper_folder(upper, Path(folder)), "trusted.overlay.opaque", b"y")
    _write(upper, "etc/hostname", f"{spec.name}\n")
    _write(upper, "etc/machine-id", f"{uuid.uuid4().hex}\n")
    _write(upper, "etc/fstab", "")
    _write(upper, "etc/systemd/journald.conf.d/zz-test.conf", JOURNALD)
    for unit in MASKED_UNITS:
        (upper / "etc/systemd/system" / unit).symlink_to("/dev/null")
    generators = _upper_folder(upper, Path("etc/systemd/system-generators"))
    for generator in Path("/usr/lib/systemd/system-generators").glob("*"):
        if generator.name not in KEPT_GENERATORS:
            (generators / generator.name).symlink_to("/dev/null")
    for tree in spec.trees:
        _copy_tree(Path(tree), upper)
    for source, inner, _ in spec.binds:
        if not inner.startswith(VOLATILE):
            target = Path(inner).relative_to("/")
            _make_like(Path(source), _upper_folder(upper, target.parent) / target.name)


def _upper_folder(upper: Path, inner: Path) -> Path:
    """Create a folder in the upper layer, with owner and mode of the host's folder."""
    folder = upper
    for part in inner.parts:
        folder = folder / part
        lower = Path("/") / folder.relative_to(upper)
        if lower.is_symlink():
            raise ValueError(f"{lower} is a symbolic link: name the folder that it points to")
        if folder.is_dir():
            continue
        folder.mkdir()
        if lower.is_dir():
            status = lower.stat()
            os.chown(folder, status.st_uid, status.st_gid)
            folder.chmod(stat.S_IMODE(status.st_mode))
    return folder


def _write(upper: Path, inner: str, text: str) -> None:
    target = upper / inner
    _upper_folder(upper, Path(inner).parent)
    target.write_text(text)


def _copy_tree(tree: Path, upper: Path) -> None:
    for folder, subfolders, files in os.walk(tree):
        target = _upper_folder(upper, Path(folder).relative_to(tree))
        links = [name for name in subfolders if Path(folder, name).is_symlink()]
        for name in files + links:
            shutil.copy2(Path(folder, name), target / name, follow_symlinks=False)


def _make_like(source: Path, target: Path) -> None:
    """Create a mount point of the type of its source: folder or file."""
    if target.exists():
        return
    if source.is_dir():
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


def become_systemd(spec: MachineSpec, boot_id: Path, console: int) -> NoReturn:
    """Turn this process, PID 1 of its namespaces, into systemd."""
    os.umask(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    for fd, number in ((null, 0), (console, 1), (console, 2)):
        os.dup2(fd, number)
    socket.sethostname(spec.name)
    _mount_kernel(spec.root, boot_id)
    _make_devices(spec.root / "dev")
    _mount_volatile(spec)
    for source, inner, readonly in spec.binds:
        target = Path(f"{spec.root}{inner}")
        _make_like(Path(source), target)  # Needed for /tmp and /run, which are new.
        linux.bind(source, target, readonly=readonly)
    linux.pivot_root(spec.root)
    # systemd does this only outside containers; without it LoadCredential= fails.
    linux.mount("none", "/", flags=linux.MS_SHARED | linux.MS_REC)
    _exec_systemd()


def _mount_kernel(root: Path, boot_id: Path) -> None:
    secure = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", root / "proc", fstype="proc", flags=secure)
    # Otherwise PID 1 and sysctl change the host's kernel.
    linux.bind(root / "proc/sys", root / "proc/sys", readonly=True)
    if (root / "proc/sysrq-trigger").exists():
        linux.bind("/dev/null", root / "proc/sysrq-trigger")
    linux.bind(boot_id, root / "proc/sys/kernel/random/boot_id", readonly=True)
    # With a read-only /sys systemd expects no udev and waits for no device unit.
    linux.mount("sysfs", root / "sys", fstype="sysfs", flags=secure | linux.MS_RDONLY)
    linux.mount("cgroup2", root / "sys/fs/cgroup", fstype="cgroup2", flags=secure)


def _make_devices(dev: Path) -> None:
    linux.mount("tmpfs", dev, fstype="tmpfs", flags=linux.MS_NOSUID, options="mode=0755,size=4m")
    for name, (major, minor) in CHARACTER_NODES.items():
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    for number in range(LOOP_NODES):
        node = os.makedev(linux.LOOP_MAJOR, number)
        os.mknod(dev / f"loop{number}", stat.S_IFBLK | 0o660, node)
    links = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in (links | {"ptmx": "pts/ptmx"}).items():
        (dev / name).symlink_to(target)
    for name in ("pts", "shm", "mqueue"):
        (dev / name).mkdir()
    pts = "newinstance,ptmxmode=0666,mode=0620,gid=5"
    linux.mount("devpts", dev / "pts", fstype="devpts", flags=linux.MS_NOSUID, options=pts)


def _mount_volatile(spec: MachineSpec) -> None:
    private = linux.MS_NOSUID | linux.MS_NODEV
    for inner, mode in (("run", "0755"), ("tmp", "1777"), ("dev/shm", "1777")):
        target = spec.root / inner
        linux.mount("tmpfs", target, fstype="tmpfs", flags=private, options=f"mode={mode}")
    (spec.root / "run/host").mkdir(mode=0o755)
    linux.bind(spec.host, spec.root / "run/host")


def _exec_systemd() -> NoReturn:
    program = next(path for path in SYSTEMD if Path(path).exists())
    environment = {
        "container": "zfsilo-test",
        "LANG": "C.UTF-8",
        "NOTIFY_SOCKET": "/run/host/notify",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    options = ["--system", "--unit=multi-user.target", "--log-target=journal", "--show-status=no"]
    sys.stdout.flush()
    os.execve(program, [program, *options], environment)

"""What the systemd under test sees: the host's root below a writable layer, and its own mounts."""

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

# Units of the distribution that reach for the host's kernel or for hardware, or only cost time.
# What the host enabled by itself is gone with /etc/systemd/system.
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
""".split()  # noqa: SIM905 - a list of one name a line would fill a page

# Each costs a process at boot and at every daemon-reload; tests may want fstab.
KEPT_GENERATORS = ("systemd-fstab-generator",)

# Folders that start empty instead of with the host's content.
EMPTY_FOLDERS = ("etc/systemd/system", "var/log", "var/tmp")

# Compress=no so that a search for secrets sees plain bytes; no limit, so that no message is lost.
JOURNALD = (
    "[Journal]\nStorage=persistent\nCompress=no\nRateLimitBurst=0\nForwardToWall=no\nAudit=no\n"
)

# New at every boot; systemd-tmpfiles removes what it finds there.
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
class Plan:
    """Everything the guard must know; paths are the host's unless they say otherwise."""

    name: str
    state: (
        str  # An empty folder; the guard mounts its tmpfs there, in a mount namespace of its own.
    )
    size: str
    trees: list[str]  # Copied into the upper layer before the first boot.
    binds: list[tuple[str, str, bool]]  # (host path, inner path, read-only)

    @property
    def upper(self) -> Path:
        """The layer that holds every change, and survives reboots."""
        return Path(self.state, "upper")

    @property
    def root(self) -> Path:
        """Where the overlay is mounted."""
        return Path(self.state, "root")

    @property
    def host(self) -> Path:
        """Shown as /run/host inside."""
        return Path(self.state, "host")


def prepare(plan: Plan) -> None:
    """Make the layers and mount the overlay, once for all boots."""
    os.umask(0o022)
    linux.mount("none", "/", flags=linux.MS_PRIVATE | linux.MS_REC)
    linux.mount("tmpfs", plan.state, fstype="tmpfs", options=f"mode=0755,size={plan.size}")
    for folder in (plan.upper, plan.root, plan.host, Path(plan.state, "work")):
        folder.mkdir(mode=0o755)
    _fill_upper(plan)
    layers = f"lowerdir=/,upperdir={plan.upper},workdir={plan.state}/work"
    linux.mount("overlay", plan.root, fstype="overlay", options=layers)


def _fill_upper(plan: Plan) -> None:
    upper = plan.upper
    for folder in EMPTY_FOLDERS:
        os.setxattr(_upper_folder(upper, Path(folder)), "trusted.overlay.opaque", b"y")
    _write(upper, "etc/hostname", f"{plan.name}\n")
    _write(upper, "etc/machine-id", f"{uuid.uuid4().hex}\n")
    _write(upper, "etc/fstab", "")
    _write(upper, "etc/systemd/journald.conf.d/zz-test.conf", JOURNALD)
    for unit in MASKED_UNITS:
        (upper / "etc/systemd/system" / unit).symlink_to("/dev/null")
    generators = _upper_folder(upper, Path("etc/systemd/system-generators"))
    for generator in Path("/usr/lib/systemd/system-generators").glob("*"):
        if generator.name not in KEPT_GENERATORS:
            (generators / generator.name).symlink_to("/dev/null")
    for tree in plan.trees:
        _copy_tree(Path(tree), upper)
    for source, inner, _ in plan.binds:
        if not inner.startswith(VOLATILE):
            _mount_point(upper, Path(source), Path(inner))


def _upper_folder(upper: Path, inner: Path) -> Path:
    """Make a folder in the upper layer; one that the host has keeps its owner and mode."""
    made = upper
    for part in inner.parts:
        made = made / part
        lower = Path("/") / made.relative_to(upper)
        if lower.is_symlink():
            raise ValueError(f"{lower} is a symbolic link: name the folder that it points to")
        if made.is_dir():
            continue
        made.mkdir()
        if lower.is_dir():
            about = lower.stat()
            os.chown(made, about.st_uid, about.st_gid)
            made.chmod(stat.S_IMODE(about.st_mode))
    return made


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


def _mount_point(upper: Path, source: Path, inner: Path) -> None:
    target = inner.relative_to("/")
    _make_like(source, _upper_folder(upper, target.parent) / target.name)


def _make_like(source: Path, target: Path) -> None:
    if target.exists():
        return
    if source.is_dir():
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


def become_systemd(plan: Plan, boot_id: Path, console: int) -> NoReturn:
    """Turn this process, PID 1 of its namespaces, into systemd."""
    os.umask(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    for fd, number in ((null, 0), (console, 1), (console, 2)):
        os.dup2(fd, number)
    socket.sethostname(plan.name)
    _mount_kernel(plan.root, boot_id)
    _make_devices(plan.root / "dev")
    _mount_volatile(plan)
    for source, inner, readonly in plan.binds:
        target = Path(f"{plan.root}{inner}")
        _make_like(Path(source), target)  # Only now if it lies in /tmp or /run.
        linux.bind(source, target, readonly=readonly)
    linux.pivot_root(plan.root)
    # systemd does this itself only outside containers; without it LoadCredential= fails.
    linux.mount("none", "/", flags=linux.MS_SHARED | linux.MS_REC)
    _exec_systemd()


def _mount_kernel(root: Path, boot_id: Path) -> None:
    secure = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", root / "proc", fstype="proc", flags=secure)
    # PID 1 and sysctl would change the host's kernel.
    linux.bind(root / "proc/sys", root / "proc/sys", readonly=True)
    if (root / "proc/sysrq-trigger").exists():
        linux.bind("/dev/null", root / "proc/sysrq-trigger")
    linux.bind(boot_id, root / "proc/sys/kernel/random/boot_id", readonly=True)
    # A read-only /sys tells systemd that there is no udev, so it waits for no device unit.
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


def _mount_volatile(plan: Plan) -> None:
    private = linux.MS_NOSUID | linux.MS_NODEV
    for inner, mode in (("run", "0755"), ("tmp", "1777"), ("dev/shm", "1777")):
        target = plan.root / inner
        linux.mount("tmpfs", target, fstype="tmpfs", flags=private, options=f"mode={mode}")
    (plan.root / "run/host").mkdir(mode=0o755)
    linux.bind(plan.host, plan.root / "run/host")


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

"""Runs inside a machine: prints objects of zfsilo, and places that show secrets, as JSON.

collect.py facts            all objects that zfsilo may have created, by kind
collect.py secrets          places that show a CHAP secret: one of configfs or a node record, one
                            with the prefix of generated secrets, or a line of standard input
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = "/sys/kernel/config/target"
NVMET = "/sys/kernel/config/nvmet"
NODE_SECRET = re.compile(r"auth\.password(?:_in)? = (\S+)")
# A key of TLS in the kernel's keyring: the NQNs of host and subsystem.
PSK = re.compile(r"psk +NVMe1R01 nqn\.\S+zfsilo\S+ (nqn\.\S+)")
# zfsilod/model/chap.py
MADE = re.compile(rb"zfsilo-chap-[0-9a-f]{32}|(?:DHHC-1|NVMeTLSkey-1):01:[A-Za-z0-9+/]{48}:")
# State files, and core dumps of killed processes: core(5), systemd-coredump(8).
FILES = ("/var/lib/zfsilo/**/*", "/run/zfsilo/**/*", "/core*", "/var/lib/systemd/coredump/*")
UNITS = ("zfsilo-op-*", "zfsilo-rollback@*")


def output(*argv: str) -> str:
    """Return the output of a command, regardless of its exit code."""
    return raw_output(*argv).decode(errors="replace")


def raw_output(*argv: str) -> bytes:
    """Return the output of a command as bytes: a journal is not always UTF-8."""
    return subprocess.run(argv, capture_output=True, check=False).stdout


def paths(pattern: str) -> list[Path]:
    """Return all paths that match an absolute pattern."""
    return sorted(Path("/").glob(pattern.removeprefix("/")))


def names(pattern: str, part: int = -1) -> list[str]:
    """Return one component of all paths that match."""
    return [path.parts[part] for path in paths(pattern)]


def zfs(kind: str) -> list[str]:
    """Return the names of all datasets of a kind; empty on a machine without ZFS."""
    if not Path("/sys/module/zfs").exists():  # /dev/zfs is there, and opening it loads the module
        return []
    return output("zfs", "list", "-H", "-o", "name", "-t", kind).split()


def mounts() -> list[str]:
    """Return the mount points of disks of volumes and of bind mounts of their device nodes."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _dash, after = line.partition(" - ")
        of_disk = after.split()[1].startswith(("/dev/sd", "/dev/nvme", "/dev/dm-", "/dev/mapper/"))
        if of_disk or before.split()[3].startswith(("/sd", "/nvme", "/dm-")):
            points.append(before.split()[4])
    return sorted(points)


def processes() -> list[str]:
    """Return the running workers and tools."""
    running = []
    for path in paths("/proc/[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"zfsilo-worker" in word for word in words) or words[0].endswith(b"iscsiadm"):
            running.append(b" ".join(words).decode(errors="replace").strip())
    return running


def daemon(entry: str) -> int:
    """Count the open descriptors (fd) or tasks (task) of zfsilod."""
    pid = output("systemctl", "show", "-P", "MainPID", "zfsilod.service").strip()
    return len(paths(f"/proc/{pid}/{entry}/*")) if pid not in ("", "0") else 0


def facts() -> dict[str, object]:
    """Return all objects by kind."""
    listed = output("systemctl", "list-units", "--all", "--plain", "--no-legend", *UNITS)
    failed = output("systemctl", "list-units", "--failed", "--plain", "--no-legend", "zfsilo*")
    return {
        "zvol": zfs("volume"),
        "snapshot": zfs("snapshot"),
        "target": names(f"{TARGET}/iscsi/iqn.*") + names(f"{NVMET}/subsystems/nqn.*"),
        "acl": names(f"{TARGET}/iscsi/iqn.*/tpgt_1/acls/*") + names(f"{NVMET}/hosts/*"),
        "port": names(f"{NVMET}/ports/*"),
        "lun": names(f"{TARGET}/iscsi/iqn.*/tpgt_1/lun/lun_*", 6),
        "backstore": names(f"{TARGET}/core/*/zfsilo-*"),
        "session": sorted(
            path.read_text().strip()
            for pattern in ("iscsi_session/*/targetname", "nvme/*/subsysnqn")
            for path in paths(f"/sys/class/{pattern}")
        ),
        "psk": PSK.findall(Path("/proc/keys").read_text()),
        "node": names("/etc/iscsi/nodes/*"),
        "mount": mounts(),
        "staging": names("/var/lib/zfsilo/staging/*"),
        "unit": [line.split()[0] for line in (listed + failed).splitlines()],
        "loop": output("losetup", "--noheadings", "-O", "NAME").split(),
        "process": processes(),
        "descriptors": daemon("fd"),
        "tasks": daemon("task"),
    }


def secrets_in_use() -> set[bytes]:
    """Return the secrets that are in use on this machine."""
    secrets = set()
    for name in ("password", "password_mutual"):
        for path in paths(f"{TARGET}/iscsi/iqn.*/tpgt_1/acls/*/auth/{name}"):
            secrets.add(path.read_bytes().strip(b"\0\n"))
    for pattern in (f"{NVMET}/hosts/*/dhchap_*key", "/sys/class/nvme/*/dhchap_*secret"):
        secrets |= {path.read_bytes().strip() for path in paths(pattern)}
    for folder, _folders, files in os.walk("/etc/iscsi/nodes"):
        for name in files:
            secrets |= {
                secret.encode() for secret in NODE_SECRET.findall(Path(folder, name).read_text())
            }
    return {secret for secret in secrets if secret not in (b"", b"NULL", b"none")}


def places() -> Iterator[tuple[str, bytes]]:
    """Yield all texts that must not contain a secret, with their names."""
    yield "journal", raw_output("journalctl", "--no-pager", "--all", "-o", "export")
    yield from files("/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ")
    yield "unit properties", output("systemctl", "show", "--all", "zfsilo*").encode()
    tree = ("busctl", "call", "org.zfsilo1", "/org/zfsilo1", "org.freedesktop.DBus.ObjectManager")
    yield "D-Bus properties", output(*tree, "GetManagedObjects").encode()
    for words in (("volume", "list"), ("operation", "list"), ("host", "list")):
        yield "zfsiloctl", output("zfsiloctl", *words, "--json").encode()
    yield from files(*FILES)


def files(*patterns: str) -> Iterator[tuple[str, bytes]]:
    """Yield the content of all files that match and still exist."""
    for path in (path for pattern in patterns for path in paths(pattern)):
        try:
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()
        except OSError:
            continue


def shown(secrets: set[bytes]) -> list[str]:
    """Return the names of the places that contain a secret, never the secret."""
    return [
        name
        for name, text in places()
        if MADE.search(text) or any(secret in text for secret in secrets)
    ]


if sys.argv[1] == "facts":
    print(json.dumps(facts()))
else:
    searched = secrets_in_use() | set(sys.stdin.buffer.read().split())
    print(json.dumps({"searched": len(searched), "shown": shown(searched)}))

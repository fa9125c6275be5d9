"""Runs inside a machine: prints as JSON what is there that zfsilo could have made.

collect.py facts            everything by kind
collect.py secrets          where the CHAP secrets of configfs and node records show, and any that
                            we made; from standard input further secrets, a line each
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = "/sys/kernel/config/target"
NODE_SECRET = re.compile(r"auth\.password(?:_in)? = (\S+)")
MADE = re.compile(rb"zfsilo-chap-[0-9a-f]{32}")  # zfsilod/model/chap.py
# Whatever a process may leave behind when it dies: core(5), systemd-coredump(8).
FILES = ("/var/lib/zfsilo/**/*", "/run/zfsilo/**/*", "/core*", "/var/lib/systemd/coredump/*")
UNITS = ("zfsilo-op-*", "zfsilo-rollback@*")


def output(*argv: str) -> str:
    """Return what a command prints, whatever its exit code."""
    return raw_output(*argv).decode(errors="replace")


def raw_output(*argv: str) -> bytes:
    """Return the bytes that a command prints: a journal may hold any."""
    return subprocess.run(argv, capture_output=True, check=False).stdout


def paths(pattern: str) -> list[Path]:
    """Return every path that matches, which is absolute."""
    return sorted(Path("/").glob(pattern.removeprefix("/")))


def names(pattern: str, part: int = -1) -> list[str]:
    """Return one component of every path that matches."""
    return [path.parts[part] for path in paths(pattern)]


def zfs(kind: str) -> list[str]:
    """Return the names of all datasets of a kind; a machine without ZFS has none."""
    if not Path("/dev/zfs").exists():
        return []
    return output("zfs", "list", "-H", "-o", "name", "-t", kind).split()


def mounts() -> list[str]:
    """Return every place where a SCSI disk, or its node, is mounted."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _dash, after = line.partition(" - ")
        if after.split()[1].startswith("/dev/sd") or "/sd" in before.split()[3]:
            found.append(before.split()[4])
    return sorted(found)


def processes() -> list[str]:
    """Return the workers and tools that run."""
    found = []
    for path in paths("/proc/[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"zfsilo-worker" in word for word in words) or words[0].endswith(b"iscsiadm"):
            found.append(b" ".join(words).decode(errors="replace").strip())
    return found


def daemon(entry: str) -> int:
    """Count the open descriptors (fd) or tasks (task) of zfsilod."""
    pid = output("systemctl", "show", "-P", "MainPID", "zfsilod.service").strip()
    return len(paths(f"/proc/{pid}/{entry}/*")) if pid not in ("", "0") else 0


def facts() -> dict[str, object]:
    """Return everything by kind."""
    listed = output("systemctl", "list-units", "--all", "--plain", "--no-legend", *UNITS)
    failed = output("systemctl", "list-units", "--failed", "--plain", "--no-legend", "zfsilo*")
    return {
        "zvol": zfs("volume"),
        "snapshot": zfs("snapshot"),
        "target": names(f"{TARGET}/iscsi/iqn.*"),
        "acl": names(f"{TARGET}/iscsi/iqn.*/tpgt_1/acls/*"),
        "lun": names(f"{TARGET}/iscsi/iqn.*/tpgt_1/lun/lun_*", 6),
        "backstore": names(f"{TARGET}/core/*/zfsilo-*"),
        "session": sorted(
            path.read_text().strip() for path in paths("/sys/class/iscsi_session/*/targetname")
        ),
        "node": names("/etc/iscsi/nodes/*"),
        "mount": mounts(),
        "staging": names("/var/lib/zfsilo/staging/*"),
        "unit": [line.split()[0] for line in (listed + failed).splitlines()],
        "loop": output("losetup", "--noheadings", "-O", "NAME").split(),
        "process": processes(),
        "descriptors": daemon("fd"),
        "tasks": daemon("task"),
    }


def planted() -> set[bytes]:
    """Return the secrets that are in use on this machine."""
    found = set()
    for name in ("password", "password_mutual"):
        for path in paths(f"{TARGET}/iscsi/iqn.*/tpgt_1/acls/*/auth/{name}"):
            found.add(path.read_bytes().strip(b"\0\n"))
    for folder, _folders, files in os.walk("/etc/iscsi/nodes"):
        for name in files:
            found |= {
                secret.encode() for secret in NODE_SECRET.findall(Path(folder, name).read_text())
            }
    return {secret for secret in found if secret and secret != b"NULL"}


def places() -> Iterator[tuple[str, bytes]]:
    """Yield every text that must not show a secret, with its name."""
    yield "journal", raw_output("journalctl", "--no-pager", "--all", "-o", "export")
    yield from files("/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ")
    yield "unit properties", output("systemctl", "show", "--all", "zfsilo*").encode()
    tree = ("busctl", "call", "org.zfsilo1", "/org/zfsilo1", "org.freedesktop.DBus.ObjectManager")
    yield "D-Bus properties", output(*tree, "GetManagedObjects").encode()
    for words in (("volume", "list"), ("operation", "list"), ("host", "list")):
        yield "zfsiloctl", output("zfsiloctl", *words, "--json").encode()
    yield from files(*FILES)


def files(*patterns: str) -> Iterator[tuple[str, bytes]]:
    """Yield the content of all files that match, but for those that are gone by now."""
    for path in (path for pattern in patterns for path in paths(pattern)):
        try:
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()
        except OSError:
            continue


def shown(secrets: set[bytes]) -> list[str]:
    """Return the names of the places that show a secret, never the secret."""
    return [
        name
        for name, text in places()
        if MADE.search(text) or any(secret in text for secret in secrets)
    ]


if sys.argv[1] == "facts":
    print(json.dumps(facts()))
else:
    known = planted() | set(sys.stdin.buffer.read().split())
    print(json.dumps({"planted": len(known), "shown": shown(known)}))

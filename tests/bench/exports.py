"""Runs on give: exports made, taken away and waited for without zfsilo; prints JSON.

    exports.py make COUNT      by the same changes in configfs, one process for all of them
    exports.py clear
    exports.py wait COUNT      until so many targets answer

Each tells the seconds since the boot at its end, how long it took, and how many processes began on
the machine meanwhile.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path("/sys/kernel/config/target")
CORE = ROOT / "core/iblock_99"
PREFIX = "iqn.2024-01.lab.bare"
CLIENT = "iqn.2024-01.lab.take:host"
AUTH = {"userid": "a", "password": "b" * 16, "userid_mutual": "c", "password_mutual": "d" * 16}
PORTAL = "10.77.0.1:3260"
LOOK_S = 0.05


def put(path: Path, value: str) -> None:
    """Write an attribute in one system call."""
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, value.encode())
    os.close(descriptor)


def make(number: int, dataset: str) -> None:
    """Export one zvol: backstore, target, LUN, portal, ACL with secrets, mapped LUN."""
    store, target = CORE / f"bare{number}", ROOT / f"iscsi/{PREFIX}:{number}"
    group = target / "tpgt_1"
    acl = group / f"acls/{CLIENT}"
    store.mkdir(parents=True)
    put(store / "wwn/vpd_unit_serial", f"bare{number}")
    put(store / "control", f"udev_path=/dev/zvol/{dataset}")
    put(store / "enable", "1")
    put(store / "attrib/emulate_tpu", "1")
    group.mkdir(parents=True)
    put(group / "attrib/authentication", "1")
    put(group / "attrib/generate_node_acls", "0")
    (group / "lun/lun_0").mkdir()
    (group / "lun/lun_0/store").symlink_to(store)
    (group / f"np/{PORTAL}").mkdir()
    put(group / "enable", "1")
    acl.mkdir()
    for name, value in AUTH.items():
        put(acl / f"auth/{name}", value)
    (acl / "lun_0").mkdir()
    (acl / "lun_0/lun").symlink_to(group / "lun/lun_0")
    put(acl / "lun_0/write_protect", "0")


def clear() -> None:
    """Take all exports of this machine away, whoever made them."""
    for group in ROOT.glob("iscsi/iqn.*/tpgt_1"):
        put(group / "enable", "0")
        for mapped in group.glob("acls/*/lun_0"):
            remove(mapped)
        for folder in (*group.glob("acls/*"), *group.glob("np/*")):
            folder.rmdir()
        remove(group / "lun/lun_0")
        group.rmdir()
        group.parent.rmdir()
    for store in ROOT.glob("core/iblock_*/*"):
        if store.is_dir() and store.name != "alua":
            store.rmdir()


def remove(folder: Path) -> None:
    """Remove a LUN with its link."""
    for each in folder.iterdir():
        if each.is_symlink():
            each.unlink()
    folder.rmdir()


def wait(count: int) -> None:
    """Wait until so many targets answer."""
    while sum(path.read_text() == "1\n" for path in ROOT.glob("iscsi/iqn.*/tpgt_1/enable")) < count:
        time.sleep(LOOK_S)  # configfs tells nobody


def begun() -> int:
    """Return how many processes began since the boot."""
    lines = Path("/proc/stat").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("processes")))


def main(verb: str, count: int) -> None:
    """Do it, and tell how it went."""
    words = ("zfs", "list", "-H", "-o", "name", "-t", "volume")
    datasets = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    since, processes = time.monotonic(), begun()
    match verb:
        case "make":
            for number, dataset in enumerate(datasets[:count]):
                make(number, dataset)
        case "clear":
            clear()
        case "wait":
            wait(count)
    took = time.monotonic() - since
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    print(json.dumps({"up": up, "took": took, "processes": begun() - processes}))


main(sys.argv[1], int(sys.argv[2]))

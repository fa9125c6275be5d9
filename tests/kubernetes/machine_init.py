"""The first process of a machine: it builds the root of its mount namespace, and waits.

machine_init.py [PATH=TARGET...] -- [PATH=FOLDER...]: symbolic links (without a target: a
folder), then bind mounts of folders of the host. It prints "ready".
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path("/mnt")  # in this namespace only
OWN = ("mnt", "run", "var", "etc")
SIZE = "size=512m"


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def build() -> None:
    """Make a root with the folders of the host, of which /run, /var and /etc are its own."""
    mount("-t", "tmpfs", "-o", SIZE, "tmpfs", str(ROOT))
    for path in sorted(Path("/").iterdir()):
        inner = ROOT / path.name
        if path.name in OWN:
            continue
        if path.is_symlink():
            inner.symlink_to(path.readlink())
        elif path.is_dir():
            inner.mkdir()
            mount("--rbind", str(path), str(inner))
    for name in ("run", "etc", "var/lib/kubelet", "var/tmp", "changes/etc", "changes/work"):
        (ROOT / name).mkdir(parents=True)
    (ROOT / "var/run").symlink_to("/run")
    changes = f"lowerdir=/etc,upperdir={ROOT}/changes/etc,workdir={ROOT}/changes/work"
    mount("-t", "overlay", "-o", changes, "overlay", str(ROOT / "etc"))


def add(word: str, *, bind: bool) -> None:
    """Make a symbolic link, a folder or a bind mount in the root."""
    name, _equals, target = word.partition("=")
    path = ROOT / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    if target and not bind:
        path.symlink_to(target)
        return
    path.mkdir(exist_ok=True)
    if bind:
        mount("--bind", target, str(path))


def main() -> None:
    """Build the root, enter it, and wait for a signal."""
    build()
    middle = sys.argv.index("--")
    for word in sys.argv[1:middle]:
        add(word, bind=False)
    for word in sys.argv[middle + 1 :]:
        add(word, bind=True)
    os.chroot(ROOT)
    os.chdir("/")
    print("ready", flush=True)
    os.execv("/bin/sleep", ["sleep", "infinity"])


if __name__ == "__main__":
    main()

"""What this host lacks for TLS over NVMe/TCP, for `zfsiloctl doctor`: kernel, tlshd, its keyring.

tlshd, of ktls-utils, finishes the handshakes of TLS for the kernel: tlshd(8), tlshd.conf(5).
"""

from __future__ import annotations

import re
from typing import Protocol

MODULE, KEYRING = "nvme_keyring", ".nvme"
TOOL = "usr/sbin/tlshd"
CONFIGURATIONS = ("etc/tlshd/config", "etc/tlshd.conf")
PROCESSES = "sys/fs/cgroup/system.slice/tlshd.service/cgroup.procs"


class FilesOfHost(Protocol):
    """The files of a host."""

    def has_module(self, name: str) -> bool: ...
    def text(self, path: str) -> str:
        """Return the content of a file; "" when it cannot be read."""

    def exists(self, path: str) -> bool: ...


def missing_for_tls(files: FilesOfHost) -> str:
    """Return what is missing for TLS over NVMe/TCP, with the command for it; "": nothing is."""
    if not files.has_module(MODULE):
        return f"this kernel does not have {MODULE} (CONFIG_NVME_TCP_TLS)"
    if not files.exists(TOOL):
        return "tlshd is not installed (apt install ktls-utils)"
    if not any(_names_keyring(files.text(path)) for path in CONFIGURATIONS):
        path = next(filter(files.exists, CONFIGURATIONS), CONFIGURATIONS[-1])
        return (
            f"/{path} does not name the keyring (keyrings={KEYRING} in its section [authenticate], "
            "then systemctl restart tlshd.service)"
        )
    if not files.text(PROCESSES).strip():
        return "tlshd does not run (systemctl enable --now tlshd.service)"
    return ""


def _names_keyring(text: str) -> bool:
    section = ""
    for line in text.splitlines():
        section = line.strip() if line.lstrip().startswith("[") else section
        names = re.fullmatch(r"\s*keyrings\s*=\s*(.*)", line)
        if names and section == "[authenticate]" and KEYRING in re.split(r"[;\s]+", names[1]):
            return True
    return False

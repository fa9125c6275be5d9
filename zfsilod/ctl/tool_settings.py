"""Settings of other tools with which a step of zfsilo cannot work, for `zfsiloctl doctor`.

Settings that node records of zfsilo override (node.*) are left out, and so is udisks: it acts on
what udev probes, which the rules of zfsilo prevent for volumes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[str], str]
    """Returns the text of a file below /, "" when there is none."""

MULTIPATH = "etc/multipath.conf"
MULTIPATH_OURS = "/etc/multipath/conf.d"
LVM = ("etc/lvm/lvm.conf", "etc/lvm/lvmlocal.conf")
MDADM = ("etc/mdadm/mdadm.conf", "etc/mdadm.conf")


class WrongSetting(NamedTuple):
    """A setting, what fails with it, and the command or line that changes it."""

    name: str
    problem: str
    command: str


def wrong_settings(read: Read) -> Iterator[WrongSetting]:
    """Yield the settings on this host with which zfsilo cannot work."""
    yield from _multipath(read(MULTIPATH))
    yield from _lvm("\n".join(map(read, LVM)))
    for path in MDADM:
        yield from _mdadm(read(path), path)


def _multipath(text: str) -> Iterator[WrongSetting]:
    text = _without_comments(text)
    folder = re.search(r"^\s*config_dir\s+\"?([^\"\s]+)", text, re.M)
    if folder and folder[1].rstrip("/") != MULTIPATH_OURS:
        yield WrongSetting(
            "multipath config_dir",
            f"multipath does not read {MULTIPATH_OURS}/zfsilo.conf: volumes have other settings",
            f"cp {MULTIPATH_OURS}/zfsilo.conf {folder[1]}; systemctl restart multipathd.service",
        )
    if _hides_volumes(text):
        yield WrongSetting(
            "multipath blacklist",
            "multipath ignores volumes of zfsilo: each has one path",
            f"edit blacklist in /{MULTIPATH}; systemctl restart multipathd.service",
        )


def _hides_volumes(text: str) -> bool:
    """Tell whether the blacklist has a device that volumes match."""
    section = re.search(r"\bblacklist\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text)
    for device in re.findall(r"device\s*\{([^}]*)", section[1] if section else ""):
        patterns = re.findall(r"^\s*(vendor|product)\s+\"?([^\"\n]*?)\"?\s*$", device, re.M)
        matches = [_matches(pattern, name) for name, pattern in patterns]
        if matches and all(matches):
            return True
    return False


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, {"vendor": "zfsilo", "product": "volume"}[name]) is not None
    except re.error:
        return False


def _lvm(text: str) -> Iterator[WrongSetting]:
    """Without event activation LVM reads all disks at boot, whatever udev says of them."""
    text = _without_comments(text)
    values = re.findall(r"\bevent_activation\s*=\s*([0-9]+)", text)
    rejects = re.search(r"\b(?:global_)?filter\s*=\s*\[[^\]]*\"r\S*zd", text)
    if values and values[-1] == "0" and not rejects:
        yield WrongSetting(
            "lvm event_activation",
            "LVM activates volume groups of clients inside zvols at boot",
            f'in /{LVM[0]}: global_filter = [ "r|^/dev/zd|", "r|^/dev/zvol/|" ]',
        )


def _mdadm(text: str, path: str) -> Iterator[WrongSetting]:
    devices = re.findall(r"^DEVICE\s+(.*)$", _without_comments(text), re.M | re.I)
    if any("/dev/zd" in line or "/dev/zvol" in line for line in devices):
        yield WrongSetting(
            "mdadm DEVICE",
            "mdadm assembles arrays of clients inside zvols",
            f"remove zvols from the lines DEVICE in /{path}",
        )


def _without_comments(text: str) -> str:
    return re.sub(r"^\s*#.*$|\s#.*$", "", text, flags=re.M)

"""Paths from the kernel's targets to zvols, by device: whatever names the objects have.

A backstore of iblock names its device and its device number in `info`, one of fileio the path of
its file: iblock_show_configfs_params() and fd_show_configfs_params() of drivers/target. The dataset
is the one that the device has now, even if it was renamed since.
"""

from __future__ import annotations

import os

from zfsilod.host import zvol_device
from zfsilod.host.attributes import read
from zfsilod.host.disks import SYS
from zfsilod.model.errors import Busy
from zfsilod.model.host_facts import ExportPath
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.configfs import Configfs
    from zfsilod.storage.paths import AnyPath

DEVICE, MAJOR, MINOR = "iBlock device: ", "Major: ", " Minor: "
FILES = (("UDEV PATH: ", "  readonly:"), ("File: ", "  Size:"))  # before and after the path
ZVOLS = zvol_device.link("")


def export_paths(fs: Configfs, udev: AnyPath = zvol_device.UDEV) -> Iterator[ExportPath]:
    """Yield every path to a zvol; of a backstore without a LUN one without a target."""
    datasets = {
        os.path.realpath(fs.path(folder)): dataset
        for folder in _backstores(fs)
        if (dataset := _dataset(fs.read(f"{folder}/info") or "", udev))
    }
    exported = set()
    for fabric, target, group in _groups(fs) if datasets else ():
        for backstore in _linked(fs, group):
            if dataset := datasets.get(backstore, ""):
                exported.add(backstore)
                yield ExportPath(
                    dataset=dataset,
                    backstore=os.path.basename(backstore),
                    target=target,
                    fabric=fabric,
                    initiators=tuple(name.lower() for name in fs.names(f"{group}/acls")),
                    open=fs.read(f"{group}/attrib/generate_node_acls") == "1",
                )
    for backstore, dataset in datasets.items():
        if backstore not in exported:
            yield ExportPath(dataset=dataset, backstore=os.path.basename(backstore))


def dataset_of_device(path: str, udev: AnyPath = zvol_device.UDEV) -> str:
    """Return the dataset of the zvol at a path, or of which the path is a partition; "" if none."""
    if name := zvol_device.dataset_of(path):
        return name
    kernel_name = os.path.basename(os.path.realpath(path))
    device = _device(f"{DEVICE}{kernel_name} ")
    number = read(f"{SYS}/class/block/{device}/dev") if device else ""
    if datasets := zvol_device.linked(number, udev) if number else []:
        return datasets[0]
    return path.removeprefix(ZVOLS) * path.startswith(ZVOLS)


def backstore_in_use(name: str, targets: list[str]) -> Busy:
    """Return the error for a backstore that is a LUN of targets."""
    return Busy(
        f"the backstore {name} is still a LUN of {', '.join(targets)}: remove it from there with "
        "targetcli, or see zfsiloctl orphan list",
        reason="EXPORTED_ELSEWHERE",
        backstore=name,
    )


def _backstores(fs: Configfs) -> Iterator[str]:
    for plugin in fs.names("core"):
        if plugin != "alua":
            yield from (f"core/{plugin}/{name}" for name in fs.names(f"core/{plugin}"))


def _groups(fs: Configfs) -> Iterator[tuple[str, str, str]]:
    """Yield fabric, target and directory of every portal group."""
    for fabric in fs.names(""):
        for target in fs.names(fabric) if fabric != "core" else ():
            for group in fs.names(f"{fabric}/{target}"):
                if group.startswith("tpgt_"):
                    yield fabric, target, f"{fabric}/{target}/{group}"


def _linked(fs: Configfs, group: str) -> set[str]:
    """Return the backstores that are LUNs of a portal group."""
    luns = fs.names(f"{group}/lun")
    return {path for lun in luns for path in fs.links(f"{group}/lun/{lun}").values()}


def _dataset(info: str, udev: AnyPath) -> str:
    """Return the dataset behind a backstore; "" when it is no zvol."""
    device = _device(info)
    if device and (name := zvol_device.dataset_of(f"/dev/{device}")):
        return name
    if datasets := zvol_device.linked(_number(info, device), udev):
        return datasets[0]
    for before, after in FILES:
        path, end, _rest = info.partition(before)[2].partition(after)
        if end:
            return zvol_device.dataset_of(path) or path.removeprefix(ZVOLS) * path.startswith(ZVOLS)
    return ""


def _device(info: str) -> str:
    """Return the name of the zvol of a backstore, or of the zvol that it is a partition of."""
    name = info.partition(DEVICE)[2].partition(" ")[0].rstrip("\n")
    whole, _p, partition = name.removeprefix("zd").partition("p")
    valid = name.startswith("zd") and whole.isdecimal() and (partition or "0").isdecimal()
    return f"zd{whole}" if valid else ""


def _number(info: str, device: str) -> str:
    """Return the number of the whole device, as major:minor."""
    whole = read(f"{SYS}/class/block/{device}/dev") if device else ""
    return whole or device_number(info)


def device_number(info: str) -> str:
    """Return the number of the device in the `info` of a backstore, as major:minor, or ""."""
    for part in info.split(MAJOR)[1:]:
        major, separator, rest = part.partition(MINOR)
        minor = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        if separator and major.isdecimal() and minor:
            return f"{major}:{minor}"
    return ""

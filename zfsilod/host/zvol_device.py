"""The block device of a zvol: /dev/zvol/POOL/NAME, a link that udev makes after the zvol.

zvol_id, zvol_wait(1) and the ioctl BLKZNAME of OpenZFS.
"""

from __future__ import annotations

import fcntl
import os

from zfsilod.host.attributes import read
from zfsilod.host.events import wait_for
from zfsilod.model.errors import Unavailable
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import names

if TYPE_CHECKING:
    from zfsilod.host.run import Runner
    from zfsilod.storage.paths import AnyPath

BLKZNAME = 0x8100127D  # _IOR(0x12, 125, char[256]) of OpenZFS: the dataset of a zvol device
NAME_BYTES = 256
UDEV = "/run/udev/data"  # visible in the daemon's sandbox, as /dev is not
ZVOL_LINK = "S:zvol/"  # at the start of a line
DEADLINE_S = 20
TRIGGER_TIMEOUT_S = 10


def link(dataset: str) -> str:
    """Return the path of the device of a zvol, whether it exists or not."""
    return f"/dev/zvol/{dataset}"


def device(run: Runner, dataset: str) -> str:
    """Wait until the link leads to the device of this zvol, and return its path.

    After half of DEADLINE_S udev is asked to process the device again. Raises Unavailable
    (NO_DEVICE) after DEADLINE_S.
    """
    path = link(dataset)

    def ready() -> bool:
        return dataset_of(path) == dataset

    if not wait_for(ready, DEADLINE_S / 2):
        _trigger_udev(run, dataset)
        if not wait_for(ready, DEADLINE_S / 2):
            raise Unavailable(
                f"the device {path} did not appear within {DEADLINE_S} s",
                reason="NO_DEVICE",
                dataset=dataset,
            )
    return path


def dataset_of(path: str) -> str:
    """Return the dataset of a zvol device, by BLKZNAME; "" when it is not one, or missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        name = bytearray(NAME_BYTES)
        fcntl.ioctl(descriptor, BLKZNAME, name)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return name.partition(b"\0")[0].decode()


def number(dataset: str) -> str:
    """Return the number of the device of a zvol, such as "230:0"; "" when there is none."""
    try:
        device = os.stat(link(dataset)).st_rdev
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}"


def linked(number: str, udev: AnyPath = UDEV) -> list[str]:
    """Return the datasets that a device number such as "230:0" has links of, as udev knows them."""
    lines = read(f"{os.fspath(udev)}/b{number}").split("\n")
    links = (line.removeprefix(ZVOL_LINK) for line in lines if line.startswith(ZVOL_LINK))
    return [link for link in links if link]


def is_device_of(dataset: str, number: str) -> bool:
    """Tell whether a device number is that of a zvol; True when it is not known.

    A zvol that was renamed, or replaced by another of its name, has another link.
    """
    datasets = linked(number)
    return not datasets or dataset in datasets


def _trigger_udev(run: Runner, dataset: str) -> None:
    """Make the kernel repeat the uevent of a zvol, which udev may have missed: udevadm(8)."""
    for name in names("/sys/block"):
        if name.startswith("zd") and dataset_of(f"/dev/{name}") == dataset:
            argv = ["udevadm", "trigger", "--action=change", f"/sys/block/{name}"]
            run(argv, timeout_s=TRIGGER_TIMEOUT_S, ok=(0, 1))
            return

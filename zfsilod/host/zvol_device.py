"""The block device of a zvol: /dev/zvol/POOL/NAME, a link that udev makes when it gets to it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host.events import wait_for
from zfsilod.model.errors import Unavailable

if TYPE_CHECKING:
    from zfsilod.host.run import Runner

BLKZNAME = 0x8100127D  # _IOR(0x12, 125, char[256]) in OpenZFS: the dataset behind a device
NAME_BYTES = 256
DEADLINE_S = 20
TRIGGER_TIMEOUT_S = 10


def link(dataset: str) -> str:
    """Return the path at which a zvol's device is to appear."""
    return f"/dev/zvol/{dataset}"


def device(run: Runner, dataset: str) -> str:
    """Return the path of a zvol's device, when it leads to that very zvol. Waits for it."""
    path = link(dataset)

    def ready() -> bool:
        return dataset_of(path) == dataset

    if not wait_for(ready, DEADLINE_S / 2):
        _announce(run, dataset)
        if not wait_for(ready, DEADLINE_S / 2):
            raise Unavailable(
                f"the device {path} did not appear within {DEADLINE_S} s",
                reason="NO_DEVICE",
                dataset=dataset,
            )
    return path


def dataset_of(path: str) -> str:
    """Return the dataset behind a device, by asking the device; "" when there is none."""
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


def _announce(run: Runner, dataset: str) -> None:
    """Have udev told again of a zvol whose event it missed or lost: openzfs has seen many."""
    for folder in Path("/sys/block").glob("zd*"):
        if dataset_of(f"/dev/{folder.name}") == dataset:
            argv = ["udevadm", "trigger", "--action=change", str(folder)]
            run(argv, timeout_s=TRIGGER_TIMEOUT_S, ok=(0, 1))
            return

"""Gives the filesystem of a clone, which has the UUID of its origin, a UUID of its own.

First the journal is replayed, since tune2fs(8) and xfs_admin(8) refuse a filesystem with a dirty
one. Then the superblock is changed. An interruption leaves the filesystem with the old or the new
UUID, and the next run continues from either.
"""

from __future__ import annotations

from zfsilod.host.disks import check_unused
from zfsilod.host.events import wait_for
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, Unavailable
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.device import Device
    from zfsilod.host.run import Runner

REPLAY_TIMEOUT_S = 600
CHANGE_TIMEOUT_S = 120
RELEASE_DEADLINE_S = 20
FSCK_UNCORRECTED = 4  # e2fsck(8): 1 and 2 are errors that it corrected
MOUNTPOINT = "/tmp"  # noqa: S108 - mounted over in a mount namespace of its own only
# The mount is only to replay the log: mount(8), xfs(5).
OPTIONS = "nouuid,nodev,noexec,nosuid,noatime,nodiscard"


def regenerate_uuid(
    run: Runner, device: Device, fs_type: str, uuid: str, *, checksums: bool
) -> None:
    """Set the UUID of an unused filesystem. `checksums`: it is ext4 with metadata_csum.

    Raises Busy when the device is in use, FailedPrecondition (NEEDS_FSCK) when the filesystem is
    damaged, Conflict for an unsupported type.
    """
    check_unused(device.path, "the disk")
    path = device.path
    match fs_type:
        case "ext4":
            _replay_ext4(run, path)
            # Checksums are seeded with the UUID. metadata_csum_seed (ext4(5)) keeps the old seed,
            # so that none is rewritten: an interruption would leave checksums of two seeds.
            seed = ["-O", "metadata_csum_seed"] if checksums else []
            run(["tune2fs", *seed, "-U", uuid, path], timeout_s=CHANGE_TIMEOUT_S)
        case "xfs":
            _replay_xfs(run, device)
            run(["xfs_admin", "-U", uuid, path], timeout_s=CHANGE_TIMEOUT_S)
        case _:
            raise Conflict(f"the disk {path} has {fs_type}, whose UUID zfsilo cannot change")


def _replay_ext4(run: Runner, path: str) -> None:
    done = run(["e2fsck", "-p", path], timeout_s=REPLAY_TIMEOUT_S, ok=tuple(range(256)))
    if done.rc >= FSCK_UNCORRECTED:
        raise FailedPrecondition(
            f"the filesystem on {path} is damaged; run e2fsck on it ({done.stdout.strip()[-500:]})",
            reason="NEEDS_FSCK",
            device=path,
            exit_code=str(done.rc),
        )


def _replay_xfs(run: Runner, device: Device) -> None:
    """Mount the filesystem in a mount namespace that ends with the process of mount(8) itself.

    So nothing is left to unmount when a process is killed: unshare(1), mount_namespaces(7).
    """
    mount = ["mount", "-t", "xfs", "-o", OPTIONS, device.path, MOUNTPOINT]
    run(["unshare", "--mount", "--propagation", "private", *mount], timeout_s=REPLAY_TIMEOUT_S)
    if not wait_for(lambda: _is_unused(device), RELEASE_DEADLINE_S):
        raise Unavailable(
            f"the kernel did not release {device.path} within {RELEASE_DEADLINE_S} s",
            device=device.path,
        )


def _is_unused(device: Device) -> bool:
    try:
        check_unused(device.path, "the disk")
    except Busy:
        return False
    return True

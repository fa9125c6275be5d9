"""A new UUID for the filesystem of a clone, which still has that of its origin.

First the journal is replayed: it is the origin's unfinished business, and neither tool touches a
filesystem that has one. Then one superblock changes. A cut in between leaves a filesystem with the
one UUID or with the other, and both can be gone on from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.host.disks import claim
from zfsilod.host.events import wait_for
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from zfsilod.host.disks import Device
    from zfsilod.host.run import Runner

REPLAY_TIMEOUT_S = 600
CHANGE_TIMEOUT_S = 120
RELEASE_DEADLINE_S = 20
FSCK_REFUSES = 4  # e2fsck(8): 1 and 2 are errors that it corrected
PLACE = "/tmp"  # noqa: S108 - covered in a mount namespace that nobody else sees, and only there
# What else a mount could do is not wanted: it is only to replay the log.
OPTIONS = "nouuid,nodev,noexec,nosuid,noatime,nodiscard"


def renew(run: Runner, device: Device, kind: str, uuid: str, *, checksums: bool) -> None:
    """Give a filesystem that nobody uses another UUID. `checksums`: ext4 with metadata_csum."""
    claim(device.path, "the disk")
    path = str(device.path)
    match kind:
        case "ext4":
            _replay_ext4(run, path)
            # With its seed kept apart from the UUID no checksum changes: else all are rewritten,
            # and a cut in between would leave two kinds of them.
            seed = ["-O", "metadata_csum_seed"] if checksums else []
            run(["tune2fs", *seed, "-U", uuid, path], timeout_s=CHANGE_TIMEOUT_S)
        case "xfs":
            _replay_xfs(run, device)
            run(["xfs_admin", "-U", uuid, path], timeout_s=CHANGE_TIMEOUT_S)
        case _:
            raise Conflict(f"the disk {path} has {kind}, whose UUID nobody here can change")


def _replay_ext4(run: Runner, path: str) -> None:
    done = run(["e2fsck", "-p", path], timeout_s=REPLAY_TIMEOUT_S, ok=tuple(range(256)))
    if done.rc >= FSCK_REFUSES:
        raise FailedPrecondition(
            f"the filesystem on {path} is damaged: run e2fsck on it by hand "
            f"({done.stdout.strip()[-500:]})",
            reason="NEEDS_FSCK",
            device=path,
            exit_code=str(done.rc),
        )


def _replay_xfs(run: Runner, device: Device) -> None:
    """Mount it for a moment, in a mount namespace that ends with the mount's own process.

    So there is nothing to unmount, whoever is killed when.
    """
    mount = ["mount", "-t", "xfs", "-o", OPTIONS, str(device.path), PLACE]
    run(["unshare", "--mount", "--propagation", "private", *mount], timeout_s=REPLAY_TIMEOUT_S)
    if not wait_for(lambda: _is_free(device), RELEASE_DEADLINE_S):
        raise Unavailable(f"the kernel did not let go of {device.path}", device=str(device.path))


def _is_free(device: Device) -> bool:
    try:
        claim(device.path, "the disk")
    except Busy:
        return False
    return True

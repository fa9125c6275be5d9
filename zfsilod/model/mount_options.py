"""Mount options that a user may choose. Pure.

Options outside the list are refused: they name another device or file (`journal_path=`, `logdev=`,
`loop`), change what a mount is (`bind`, `remount`), weaken it (`suid`, `dev`, `norecovery`), or are
set by zfsilo itself (`ro`, `nouuid`). docs/operations.md lists them with reasons.
"""

from __future__ import annotations

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.names import ALPHANUMERIC

MAX_OPTIONS = 32
MAX_VALUE = 64
OPTIONS = (
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
    "lazytime",
    "nosuid",
    "nodev",
    "noexec",
    "sync",
    "dirsync",
    "discard",
    "nodiscard",
    "commit",
    "data",
    "errors",
    "barrier",
    "nobarrier",
    "journal_checksum",
    "user_xattr",
    "acl",
    "inode64",
    "largeio",
    "logbufs",
    "logbsize",
    "allocsize",
    "swalloc",
    "usrquota",
    "grpquota",
    "prjquota",
    "uquota",
    "gquota",
    "pquota",
    "nofail",
    "_netdev",
    "norelatime",
    "nolazytime",
    "async",
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
    "nodelalloc",
    "delalloc",
    "stripe",
    "auto_da_alloc",
    "noauto_da_alloc",
    "max_batch_time",
    "min_batch_time",
    "init_itable",
    "noinit_itable",
    "inode_readahead_blks",
    "dioread_lock",
    "dioread_nolock",
    "nouser_xattr",
    "noacl",
    "inode32",
    "sunit",
    "swidth",
    "nolargeio",
    "wsync",
)


def check_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the mount options when all are in OPTIONS. Raises InvalidArgument."""
    if len(options) > MAX_OPTIONS:
        raise InvalidArgument(
            f"{len(options)} mount options are too many; pass at most {MAX_OPTIONS}",
            reason="BAD_MOUNT_OPTION",
        )
    for option in options:
        name, equals, value = option.partition("=")
        if name not in OPTIONS or (equals and not _is_value(value)):
            raise InvalidArgument(
                f"the mount option {option[:80]!r} is not allowed", reason="BAD_MOUNT_OPTION"
            )
    return tuple(options)


def _is_value(text: str) -> bool:
    return 0 < len(text) <= MAX_VALUE and ALPHANUMERIC.union("._:-").issuperset(text)

"""Parses the superblocks of ext2, ext3, ext4 and XFS, without a process.

Documentation/filesystems/ext4/super.rst and fs/xfs/libxfs/xfs_format.h of the kernel.
"""

from __future__ import annotations

import struct

EXT_OFFSET = 1024
EXT_MAGIC = 0xEF53
XFS_BYTES = 128  # the part of its superblock that is parsed
XFS_IN_PROGRESS = 126  # sb_inprogress: mkfs.xfs has not ended
XFS_MAGIC = b"XFSB"
BYTES = 4096  # of the start of the device, enough for all of them

COMPAT_HAS_JOURNAL = 0x4
INCOMPAT_RECOVER = 0x4  # the journal is to be replayed
INCOMPAT_JOURNAL_DEVICE = 0x8
EXT_VALID = 1  # s_state: unmounted, and no error was found
RO_COMPAT_METADATA_CSUM = 0x400
INCOMPAT_64BIT = 0x80
MAX_LOG_BLOCK = 6  # blocks of 64 KiB
INCOMPAT_EXT4 = 0x2C0  # extents, 64 bit, flex_bg: features that ext3 does not have
PAGE_BYTES = 4096  # resize2fs rounds down to whole pages
EXT_MARGIN_BLOCKS = 53  # two bitmaps, a superblock, and the 50 blocks of the smallest group


class Superblock:
    """The values of a superblock that zfsilo needs."""

    def __init__(
        self,
        *,
        type: str,  # noqa: A002 - as blkid and mount name it
        uuid: str,
        size_bytes: int,
        spare_bytes: int,
        checksums: bool = False,
        never_used: bool = False,
        clean: bool = False,
    ) -> None:
        self.type = type
        self.uuid = uuid
        self.size_bytes = size_bytes
        self.checksums = checksums  # ext4 with metadata_csum, which is seeded with the UUID
        self.never_used = never_used  # no mount wrote to it, or mkfs has not even ended
        self.clean = clean  # ext4: complete, unmounted, and without errors
        self.spare_bytes = spare_bytes  # at most so many bytes at the end of a device stay unused

    def fills(self, device_bytes: int) -> bool:
        """Tell whether the filesystem is as large as a device of this size allows."""
        return 0 <= device_bytes - self.size_bytes <= self.spare_bytes


def parse(start: bytes) -> Superblock | None:
    """Return the superblock in the first BYTES of a device; None when there is none."""
    if len(start) >= XFS_BYTES and start[:4] == XFS_MAGIC:
        block_bytes, blocks = struct.unpack_from(">IQ", start, 4)
        return Superblock(
            type="xfs",
            uuid=_uuid(start[32:48]),
            size_bytes=block_bytes * blocks,
            spare_bytes=0,
            never_used=start[XFS_IN_PROGRESS] != 0,
        )
    block = start[EXT_OFFSET:]
    if len(block) >= 1024 and struct.unpack_from("<H", block, 56)[0] == EXT_MAGIC:
        return _ext(block)
    return None


def _ext(block: bytes) -> Superblock | None:
    low, first, log = (struct.unpack_from("<I", block, offset)[0] for offset in (4, 20, 24))
    compat, incompat, ro_compat = struct.unpack_from("<III", block, 92)
    per_group = struct.unpack_from("<I", block, 32)[0]
    # Any user of the disk can write these numbers, so impossible ones are refused here.
    if incompat & INCOMPAT_JOURNAL_DEVICE or log > MAX_LOG_BLOCK or per_group == 0:
        return None
    high = struct.unpack_from("<I", block, 336)[0] if incompat & INCOMPAT_64BIT else 0
    blocks, block_bytes = (high << 32) + low, 1024 << log
    older = "ext3" if compat & COMPAT_HAS_JOURNAL else "ext2"
    return Superblock(
        type="ext4" if incompat & INCOMPAT_EXT4 else older,
        uuid=_uuid(block[104:120]),
        size_bytes=blocks * block_bytes,
        checksums=bool(ro_compat & RO_COMPAT_METADATA_CSUM),
        never_used=not any((_u16(block, 52), *block[44:48], *block[136:200])),
        clean=_u16(block, 58) == EXT_VALID and not incompat & INCOMPAT_RECOVER,
        spare_bytes=_ext_spare(block, blocks - first, block_bytes, incompat),
    )


def _ext_spare(block: bytes, blocks: int, block_bytes: int, incompat: int) -> int:
    """Return the largest number of bytes after the filesystem that are too few for another group.

    A block group needs its bitmaps and its inode table, and may need copies of the superblock and
    the group descriptors; mke2fs and the kernel drop a last group that is smaller. This applies
    only when the filesystem ends with a full group; otherwise its last group grows.
    """
    per_group, inodes = struct.unpack_from("<I4xI", block, 32)
    inode_bytes, reserved = _u16(block, 88), _u16(block, 206)
    if blocks % per_group:
        return PAGE_BYTES - 1
    descriptor = (_u16(block, 254) or 32) if incompat & INCOMPAT_64BIT else 32
    tables = _blocks(inodes * inode_bytes, block_bytes)
    descriptors = _blocks((blocks // per_group + 1) * descriptor, block_bytes)
    return (tables + descriptors + reserved + EXT_MARGIN_BLOCKS) * block_bytes


def _blocks(size_bytes: int, block_bytes: int) -> int:
    return -(-size_bytes // block_bytes)


def _u16(block: bytes, offset: int) -> int:
    return int(struct.unpack_from("<H", block, offset)[0])


def _uuid(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

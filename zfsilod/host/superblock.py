"""The superblocks of ext2, ext3, ext4 and XFS, read directly: no process, and no guessing.

Source: Documentation/filesystems/ext4/super.rst of the kernel, fs/xfs/libxfs/xfs_format.h.
"""

from __future__ import annotations

import struct

EXT_OFFSET = 1024
EXT_MAGIC = 0xEF53
XFS_BYTES = 48  # of its superblock, as far as it is read
XFS_MAGIC = b"XFSB"
BYTES = 4096  # enough of the device's start for all of them

COMPAT_HAS_JOURNAL = 0x4
INCOMPAT_JOURNAL_DEVICE = 0x8
RO_COMPAT_METADATA_CSUM = 0x400
INCOMPAT_64BIT = 0x80
MAX_LOG_BLOCK = 6  # blocks of 64 KiB
INCOMPAT_EXT4 = 0x2C0  # extents, 64 bit, flex_bg: no ext3 has any of them
PAGE_BYTES = 4096  # resize2fs rounds down to whole pages
EXT_MARGIN_BLOCKS = 53  # two bitmaps, a superblock, and the 50 blocks that are no group's worth


class Superblock:
    """What a filesystem says of itself."""

    def __init__(
        self,
        *,
        type: str,  # noqa: A002 - as blkid and mount name it
        uuid: str,
        size_bytes: int,
        spare_bytes: int,
        checksums: bool = False,
    ) -> None:
        self.type = type
        self.uuid = uuid
        self.size_bytes = size_bytes
        self.checksums = checksums  # ext4: of all metadata, and the UUID is a part of them
        self.spare_bytes = spare_bytes  # so much at a device's end is too little to be used

    def fills(self, device_bytes: int) -> bool:
        """Tell whether the filesystem is as large as it can be on a device of that size."""
        return 0 <= device_bytes - self.size_bytes <= self.spare_bytes


def parse(start: bytes) -> Superblock | None:
    """Return the superblock in the first bytes of a device, or None."""
    if len(start) >= XFS_BYTES and start[:4] == XFS_MAGIC:
        return _xfs(start)
    block = start[EXT_OFFSET:]
    if len(block) >= 1024 and struct.unpack_from("<H", block, 56)[0] == EXT_MAGIC:
        return _ext(block)
    return None


def _xfs(block: bytes) -> Superblock:
    block_bytes, blocks = struct.unpack_from(">IQ", block, 4)
    return Superblock(
        type="xfs", uuid=_uuid(block[32:48]), size_bytes=block_bytes * blocks, spare_bytes=0
    )


def _ext(block: bytes) -> Superblock | None:
    low, first, log = (struct.unpack_from("<I", block, offset)[0] for offset in (4, 20, 24))
    compat, incompat, ro_compat = struct.unpack_from("<III", block, 92)
    per_group = struct.unpack_from("<I", block, 32)[0]
    # Whoever may write to the disk chose these numbers: what cannot be is not calculated with.
    if incompat & INCOMPAT_JOURNAL_DEVICE or log > MAX_LOG_BLOCK or per_group == 0:
        return None
    high = struct.unpack_from("<I", block, 336)[0] if incompat & INCOMPAT_64BIT else 0
    blocks, block_bytes = (high << 32) + low, 1024 << log
    kind = "ext3" if compat & COMPAT_HAS_JOURNAL else "ext2"
    return Superblock(
        type="ext4" if incompat & INCOMPAT_EXT4 else kind,
        uuid=_uuid(block[104:120]),
        size_bytes=blocks * block_bytes,
        checksums=bool(ro_compat & RO_COMPAT_METADATA_CSUM),
        spare_bytes=_ext_spare(block, blocks - first, block_bytes, incompat),
    )


def _ext_spare(block: bytes, blocks: int, block_bytes: int, incompat: int) -> int:
    """Return how much room after the end is not worth a block group of its own.

    A group needs room for its bitmaps and inode table, and perhaps for copies of the superblock and
    the group descriptors; mke2fs and the kernel drop a last group that is smaller. That can only
    be so when the filesystem ends with a whole group.
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

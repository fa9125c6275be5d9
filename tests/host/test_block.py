"""The adapter for filesystems, with real mke2fs and blkid on disk images."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import TARGET, UID, FakeSys, ScriptedRunner
from zfsilod.host import superblock
from zfsilod.host.block import MIB, RealBlock
from zfsilod.host.disks import Disks
from zfsilod.host.run import Runner
from zfsilod.model.errors import Conflict, FailedPrecondition, InvalidArgument, ZfsiloError
from zfsilod.model.host_facts import Disk, Filesystem

if TYPE_CHECKING:
    from pathlib import Path

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
SIZE = 64 << 20
DISK = Disk(target=TARGET, serial=UID, size_bytes=SIZE)
FORMATTING = Filesystem(state="FORMATTING", type="ext4", uuid=UUID, operation="op", host="take")
READY = Filesystem(state="READY", type="ext4", uuid=UUID)

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool, path="/usr/sbin:/sbin") for tool in ("mke2fs", "blkid", "e2fsck")),
    reason="needs e2fsprogs and util-linux",
)


class DiskImage:
    """A block adapter with a file as its disk."""

    def __init__(self, root: Path) -> None:
        self.sys = FakeSys(root)
        self.sys.login(size_bytes=SIZE)
        self.path = self.sys.dev / "sda"
        self.disks = Disks(self.sys.sys, self.sys.dev, self.sys.run)
        self.proofs = root / "proofs"
        self.block = RealBlock(Runner(), self.disks, self.proofs)

    def mkfs(self, *options: str) -> None:
        """Format the disk without the adapter."""
        argv = ["mke2fs", "-q", "-F", *options, str(self.path)]
        subprocess.run(argv, check=True, capture_output=True)

    def debugfs(self, *commands: str) -> None:
        """Change the filesystem of the disk behind the back of its checks."""
        argv = ["debugfs", "-w", "-f", "-", str(self.path)]
        subprocess.run(argv, input="\n".join(commands), text=True, check=True, capture_output=True)

    def prove(self) -> None:
        """Leave the proof that mkfs of zfsilo was started on the empty disk and has not ended."""
        self.proofs.mkdir(exist_ok=True)
        (self.proofs / UUID).write_text(UID)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes to the disk."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskImage:
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    return DiskImage(tmp_path)


def test_an_empty_disk_is_formatted_once(bench: DiskImage) -> None:
    assert not bench.block.has_filesystem(DISK, FORMATTING)
    bench.block.make_filesystem(DISK, FORMATTING)
    assert bench.block.has_filesystem(DISK, FORMATTING)
    assert bench.block.has_filesystem(DISK, READY)
    assert bench.block.find_filesystem(DISK) == READY
    assert not list(bench.proofs.iterdir())
    bench.write(40 * MIB, b"data")
    bench.block.make_filesystem(DISK, FORMATTING)
    assert bench.path.read_bytes()[40 * MIB : 40 * MIB + 4] == b"data"


def test_only_when_the_server_has_recorded_it(bench: DiskImage) -> None:
    for state in ("NONE", "READY"):
        with pytest.raises(FailedPrecondition, match="must record FORMATTING first"):
            bench.block.make_filesystem(DISK, FORMATTING.but(state=state))
    for wrong in (FORMATTING.but(type="btrfs"), FORMATTING.but(uuid="../x")):
        with pytest.raises(InvalidArgument):
            bench.block.make_filesystem(DISK, wrong)


def test_only_on_a_disk_of_that_serial_and_size(bench: DiskImage) -> None:
    with pytest.raises(Conflict, match="serial"):
        bench.block.make_filesystem(DISK.but(serial="x"), FORMATTING)
    with pytest.raises(Conflict, match="67108864 bytes"):
        bench.block.make_filesystem(DISK.but(size_bytes=SIZE // 2), FORMATTING)
    assert not bench.path.read_bytes().strip(b"\0")


@pytest.mark.parametrize("offset", [0, 510, MIB - 1, SIZE - MIB, SIZE - 1])
def test_a_single_byte_at_either_end_forbids_it(bench: DiskImage, offset: int) -> None:
    bench.write(offset, b"x")
    for action in (bench.block.has_filesystem, bench.block.make_filesystem):
        with pytest.raises(Conflict, match="not empty"):
            action(DISK, FORMATTING)
    assert bench.path.read_bytes().strip(b"\0") == b"x"


def test_other_content_is_named(bench: DiskImage) -> None:
    subprocess.run(["mkswap", str(bench.path)], check=True, capture_output=True)
    with pytest.raises(Conflict, match="swap"):
        bench.block.has_filesystem(DISK, FORMATTING)
    with pytest.raises(Conflict, match=r"swap .* but the server reports"):
        bench.block.has_filesystem(DISK, READY)


def test_an_existing_filesystem_is_adopted_and_never_formatted(bench: DiskImage) -> None:
    bench.mkfs("-t", "ext4", "-U", OTHER)
    assert bench.block.has_filesystem(DISK, FORMATTING)
    bench.block.make_filesystem(DISK, FORMATTING)
    assert bench.block.find_filesystem(DISK).uuid == OTHER
    with pytest.raises(Conflict, match=r"already, ext4 .* not formatted again"):
        bench.block.make_filesystem(DISK, FORMATTING.but(type="xfs"))
    bench.mkfs("-t", "ext3")
    with pytest.raises(Conflict, match=r"already, ext3 .* not formatted again"):
        bench.block.has_filesystem(DISK, FORMATTING)


def test_a_lost_filesystem_is_an_error_and_not_made_again(bench: DiskImage) -> None:
    with pytest.raises(Conflict, match="has nothing, but the server reports"):
        bench.block.has_filesystem(DISK, READY)
    bench.mkfs("-t", "ext4", "-U", OTHER)
    with pytest.raises(Conflict, match=OTHER):
        bench.block.has_filesystem(DISK, READY)


def test_a_killed_mkfs_is_repeated_with_the_proof_only(bench: DiskImage) -> None:
    bench.mkfs("-t", "ext4", "-U", UUID)
    bench.write(0, bytes(4096))  # as if it was killed before it wrote the superblock
    with pytest.raises(Conflict, match="not empty"):
        bench.block.has_filesystem(DISK, FORMATTING)
    bench.proofs.mkdir()
    (bench.proofs / UUID).write_text("another disk")
    with pytest.raises(Conflict, match="not empty"):
        bench.block.make_filesystem(DISK, FORMATTING)
    (bench.proofs / UUID).write_text(UID)
    assert not bench.block.has_filesystem(DISK, FORMATTING)
    bench.block.make_filesystem(DISK, FORMATTING)
    assert bench.block.has_filesystem(DISK, FORMATTING)


def test_an_incomplete_filesystem_is_made_again_with_the_proof_only(bench: DiskImage) -> None:
    bench.mkfs("-t", "ext4", "-U", UUID)
    bench.write(4096, bytes(8 * 4096))
    before = bench.path.read_bytes()
    for probe in (bench.block.has_filesystem, bench.block.make_filesystem):
        with pytest.raises(Conflict, match=f"run `e2fsck -f {bench.path}`") as refusal:
            probe(DISK, FORMATTING)
        assert refusal.value.reason == "NEEDS_FSCK"
    assert bench.path.read_bytes() == before, "what needs a repair is not half made"
    bench.prove()
    assert not bench.block.has_filesystem(DISK, FORMATTING)
    bench.block.make_filesystem(DISK, FORMATTING)
    assert bench.block.has_filesystem(DISK, FORMATTING)


def test_a_filesystem_that_was_mounted_is_never_half_made(bench: DiskImage) -> None:
    bench.mkfs("-t", "ext4", "-U", UUID)
    bench.debugfs("set_super_value mtime 1700000000", "set_super_value mnt_count 1")
    bench.debugfs("set_inode_field <8> mode 0", "set_bg 0 inode_table 5")
    before = bench.path.read_bytes()
    bench.prove()  # of a state directory that was restored
    for probe in (bench.block.has_filesystem, bench.block.make_filesystem):
        with pytest.raises(Conflict) as refusal:
            probe(DISK, FORMATTING)
        assert refusal.value.reason == "NEEDS_FSCK"
    assert bench.path.read_bytes() == before


@pytest.mark.parametrize("tool", [("mkswap",), ("mke2fs", "-F", "-O", "journal_dev")])
def test_foreign_content_is_not_wiped_even_with_the_proof(
    bench: DiskImage, tool: tuple[str, ...]
) -> None:
    subprocess.run([*tool, str(bench.path)], check=True, capture_output=True)
    before = bench.path.read_bytes()
    bench.prove()
    with pytest.raises(Conflict) as refusal:
        bench.block.make_filesystem(DISK, FORMATTING)
    assert refusal.value.reason == "NOT_EMPTY"
    assert bench.path.read_bytes() == before


@pytest.mark.parametrize(("progress", "half_made"), [(1, True), (0, False)])
def test_an_xfs_is_half_made_while_it_says_so(
    bench: DiskImage, progress: int, *, half_made: bool
) -> None:
    start = b"XFSB" + (4096).to_bytes(4, "big") + (16384).to_bytes(8, "big") + bytes(16)
    start += bytes.fromhex(UUID.replace("-", ""))
    bench.write(0, start.ljust(126, b"\0") + bytes([progress]))
    bench.prove()
    answer = (f"xfs_repair -n {bench.path}", 1, "", "would have reset")
    block = RealBlock(ScriptedRunner(answer), bench.disks, bench.proofs)
    if half_made:
        assert not block.has_filesystem(DISK, FORMATTING.but(type="xfs"))
        return
    with pytest.raises(Conflict, match="run `xfs_repair"):
        block.has_filesystem(DISK, FORMATTING.but(type="xfs"))


def test_the_proof_is_saved_before_mkfs_starts(bench: DiskImage) -> None:
    class FailingMkfs(Runner):
        def find(self, tool: str) -> str:
            assert not tool.startswith("mkfs") or (bench.proofs / UUID).read_text() == UID
            return "/bin/false" if tool.startswith("mkfs") else super().find(tool)

    block = RealBlock(FailingMkfs(), bench.disks, bench.proofs)
    with pytest.raises(ZfsiloError):
        block.make_filesystem(DISK, FORMATTING)
    bench.write(0, b"torn")
    bench.block.make_filesystem(DISK, FORMATTING)


def test_too_small_for_xfs(bench: DiskImage) -> None:
    stderr = "specified blocksize 4096 is less\nFilesystem must be larger than 300MB.\nUsage:\n"
    disk = bench.path
    run = ScriptedRunner(
        (f"blkid -p -o export {disk}", 2, "", ""),
        (f"mkfs.xfs -q -K -m uuid={UUID} {disk}", 1, "", stderr),
    )
    block = RealBlock(run, bench.disks, bench.proofs)
    with pytest.raises(FailedPrecondition, match="300 MiB"):
        block.make_filesystem(DISK, FORMATTING.but(type="xfs"))


MIBS = (8, 33, 64, 127, 128, 129, 131, 136, 192, 256, 260, 300)


@pytest.mark.parametrize("start", [16, 64, 200])
@pytest.mark.parametrize("options", [("-b", "4096"), ("-b", "1024"), ("-b", "4096", "-I", "128")])
def test_fills_agrees_with_resize2fs(tmp_path: Path, start: int, options: tuple[str, ...]) -> None:
    """The size that resize2fs makes must count as filled, or each Sync would grow it again."""
    path = tmp_path / "disk"
    for size in [start + more for more in MIBS]:
        with path.open("wb") as file:
            file.truncate(start * MIB)
        argv = ["mke2fs", "-q", "-F", "-t", "ext4", *options, str(path)]
        subprocess.run(argv, check=True, capture_output=True)
        assert read(path).fills(start * MIB)
        with path.open("r+b") as file:
            file.truncate(size * MIB)
        assert not read(path).fills(size * MIB) or size - start <= 8
        subprocess.run(["resize2fs", str(path)], check=True, capture_output=True)
        assert read(path).fills(size * MIB), (start, size, options)
        assert not read(path).fills(start * MIB)


def read(path: Path) -> superblock.Superblock:
    with path.open("rb") as file:
        parsed = superblock.parse(file.read(superblock.BYTES))
    assert parsed is not None
    return parsed


def test_superblock_of_ext_and_of_other_data(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for kind in ("ext2", "ext3", "ext4"):
        with path.open("wb") as file:
            file.truncate(SIZE)
        argv = ["mke2fs", "-q", "-F", "-t", kind, "-U", UUID, str(path)]
        subprocess.run(argv, check=True, capture_output=True)
        assert (read(path).type, read(path).uuid, read(path).size_bytes) == (kind, UUID, SIZE)
    for nothing in (b"", bytes(4096), b"\x53\xef" * 2048, b"XFS", b"XFSB"):
        assert superblock.parse(nothing.ljust(4096 if nothing else 0, b"\0")) is None or nothing


def test_an_ext4_is_clean_and_never_used_until_it_has_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
    Runner()(["mkfs.ext4", "-q", str(path)], timeout_s=60)
    assert (read(path).never_used, read(path).clean) == (True, True)
    for field in ("state 2", "mnt_count 1"):
        argv = ["debugfs", "-w", "-R", f"set_super_value {field}", str(path)]
        subprocess.run(argv, check=True, capture_output=True)
    assert (read(path).never_used, read(path).clean) == (False, False)


def test_superblock_of_xfs() -> None:
    start = b"XFSB" + (4096).to_bytes(4, "big") + (106496).to_bytes(8, "big") + bytes(16)
    start += bytes.fromhex(UUID.replace("-", ""))
    parsed = superblock.parse(start.ljust(4096, b"\0"))
    assert parsed is not None
    assert (parsed.type, parsed.uuid, parsed.size_bytes) == ("xfs", UUID, 106496 * 4096)

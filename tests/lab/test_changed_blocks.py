"""Changed blocks on real ZFS: every byte that differs is in a range."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import STEP_S, TEST_S, ctl, refusal

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

MIB = 1 << 20
# Writes at random offsets, and discards and overwrites with zeros, the seed being the argument.
CHANGE = """
import fcntl, os, random, struct, sys
path, seed, end, least = sys.argv[1], *map(int, sys.argv[2:])
chance = random.Random(seed)
device = os.open(path, os.O_RDWR)
for number in range(40):
    length = chance.choice((512, 4096, 16384, 100_000, 400_000))
    offset = chance.randrange(least, end - length) & ~511
    match number % 4:
        case 0:
            fcntl.ioctl(device, 0x1277, struct.pack("QQ", offset, length & ~511))  # BLKDISCARD
        case 1:
            os.pwrite(device, bytes(length), offset)
        case _:
            os.pwrite(device, chance.randbytes(length), offset)
os.fsync(device)
"""
# Compares two devices with the ranges on standard input, and prints what it counted.
COMPARE = """
import json, sys
STEP = 512
before, after = (open(path, "rb").read() if path != "-" else b"" for path in sys.argv[1:])
copy = bytearray(before.ljust(len(after), b"\\0"))
position = 0
listed, needless = {"data": 0, "zero": 0}, {"data": 0, "zero": 0}
for line in sys.stdin:
    offset, length, kind = line.split()
    start, end = int(offset), int(offset) + int(length)
    assert position <= start < end <= len(after), (position, start, end)
    position = end
    if kind == "zero":
        assert not any(after[start:end]), (start, end)
    needless[kind] += sum(
        copy[one : one + STEP] == after[one : one + STEP] for one in range(start, end, STEP)
    ) * STEP
    listed[kind] += end - start
    copy[start:end] = after[start:end]
lost = [
    one for one in range(0, len(after), STEP) if copy[one : one + STEP] != after[one : one + STEP]
]
print(json.dumps({"lost": lost[:9], "listed": listed, "needless": needless}))
"""
# ZFS sends parts that were never written too, unless this is 0.
HOLES = "/sys/module/zfs/parameters/send_holes_without_birth_time"


class Snapshots:
    """A volume of the server, changed and snapshotted; its snapshots are devices too."""

    def __init__(self, give: Machine, name: str) -> None:
        self.give = give
        self.name = name
        self.dataset = f"tank/zfsilo/{name}"
        give.put("/root/change.py", CHANGE.encode(), 0o600)
        give.put("/root/compare.py", COMPARE.encode(), 0o600)

    def change(self, seed: int, end: int, least: int = 0) -> None:
        """Change parts of the volume between two offsets."""
        self.give.run("udevadm", "settle")
        device = f"/dev/zvol/{self.dataset}"
        words = ("python3", "-I", "/root/change.py", device, *map(str, (seed, end, least)))
        self.give.run(*words, timeout_s=STEP_S)

    def take(self, name: str) -> str:
        """Take a snapshot, and return its name in ZFS."""
        ctl(self.give, "snapshot", "create", self.name, name)
        self.give.run("zpool", "sync")
        self.give.run("udevadm", "settle")
        listed = self.give.sh(f"zfs list -H -o name -s createtxg -t snapshot {self.dataset}")
        return listed.stdout.split()[-1].partition("@")[2]

    def compare(self, ranges: str, before: str, after: str) -> dict[str, dict[str, int]]:
        """Apply ranges to a copy of one snapshot, "": nothing; it has to equal the other one."""
        devices = [f"/dev/zvol/{self.dataset}@{name}" if name else "-" for name in (before, after)]
        self.give.put("/root/ranges", ranges.encode(), 0o600)
        done = self.give.sh(
            f"python3 -I /root/compare.py {' '.join(devices)} < /root/ranges", timeout_s=STEP_S
        )
        counted: dict[str, dict[str, int]] = json.loads(done.stdout)
        print(f"{self.name}: {before or 'nothing'} to {after}: {counted}, {done.seconds:.1f} s")
        assert not counted["lost"]
        return counted

    def blocks(self, name: str, *words: str) -> str:
        done = ctl(self.give, "snapshot", "blocks", name, *words)
        print(f"{name} {words}: {len(done.stdout.splitlines())} ranges, {done.seconds:.1f} s")
        return done.stdout


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestChangedBlocks:
    """Volumes that are changed at random."""

    @pytest.mark.parametrize("how", ["plain", "encrypted"])
    def test_a_copy_with_the_ranges_is_whole(self, pair: Pair, how: str) -> None:
        give = pair.give
        if how == "encrypted":
            ctl(give, "seal-key", "--yes")
        ctl(give, "volume", "create", how, "64M", *(["--encrypt"] if how == "encrypted" else []))
        give.run("zfs", "set", "snapdev=visible", f"tank/zfsilo/{how}")
        volume = Snapshots(give, how)
        volume.change(1, 24 * MIB)
        first = volume.take(f"{how}-1")
        volume.change(2, 20 * MIB)
        second = volume.take(f"{how}-2")
        ctl(give, "volume", "resize", how, "96M")
        volume.change(3, 96 * MIB, 80 * MIB)  # makes the tree of blocks higher, with holes in it
        third = volume.take(f"{how}-3")
        device = f"/dev/zvol/tank/zfsilo/{how}"
        give.sh(f"blkdiscard -o {10 * MIB} {device} && sync", timeout_s=STEP_S)  # up to the end
        fourth = volume.take(f"{how}-4")
        taken = dict(enumerate((first, second, third, fourth), start=1))
        for number, name in taken.items():
            listed = volume.compare(volume.blocks(f"{how}-{number}"), "", name)["listed"]
            assert listed["zero"] == 0
            assert listed["data"] < 10 * MIB
        for base, number in ((1, 2), (2, 3), (3, 4), (1, 3), (1, 4), (2, 4)):
            ranges = volume.blocks(f"{how}-{number}", "--since", f"{how}-{base}")
            counted = volume.compare(ranges, taken[base], taken[number])
            # A block is listed whole, whatever part of it was written.
            assert counted["needless"]["data"] < counted["listed"]["data"] / 2
        give.sh(f"echo 0 > {HOLES}")
        ranges = volume.blocks(f"{how}-2", "--since", f"{how}-1")
        counted = volume.compare(ranges, taken[1], taken[2])
        assert counted["needless"]["zero"] < MIB, "no part that was never written"
        give.sh(f"echo 1 > {HOLES}")
        assert "not older" in refusal(give, "snapshot", "blocks", f"{how}-1", "--since", f"{how}-2")
        volume.take(f"{how}-5")
        assert volume.blocks(f"{how}-5", "--since", f"{how}-4") == ""
        if how == "encrypted":
            before = volume.blocks(f"{how}-4", "--since", f"{how}-1")
            give.run("zfs", "set", "snapdev=hidden", f"tank/zfsilo/{how}")
            give.run("udevadm", "settle")
            give.run("zfs", "unload-key", f"tank/zfsilo/{how}", timeout_s=STEP_S)
            assert volume.blocks(f"{how}-4", "--since", f"{how}-1") == before
        units = give.sh("journalctl -b -o cat -u 'zfsilo-blocks-*' --no-pager | tail -40").stdout
        print(units)
        assert not give.sh("systemctl list-units --all --no-legend 'zfsilo-blocks-*'").stdout
        assert not give.sh("ls /run/zfsilo/op | grep -v sock || true").stdout

    def test_a_snapshot_that_is_read_is_not_deleted(self, pair: Pair) -> None:
        give = pair.give
        ctl(give, "volume", "create", "busy", "64M")
        give.run("udevadm", "settle")
        give.sh("dd if=/dev/urandom of=/dev/zvol/tank/zfsilo/busy bs=1M count=48 && sync")
        ctl(give, "snapshot", "create", "busy", "busy-1")
        # The stream of ZFS is stopped in the middle of its work.
        blocked = give.sh(
            "zfsiloctl snapshot blocks busy-1 > /root/listed & "
            "until pkill -STOP -f '^[^ ]*/zfs send'; do :; done; "
            "zfsiloctl snapshot delete busy-1 2>&1; pkill -CONT -f '^[^ ]*/zfs send'; "
            "wait %1; echo $?",
            timeout_s=STEP_S,
        ).stdout
        print(blocked)
        assert "is busy" in blocked
        assert blocked.endswith("\n0\n")
        for name in ("plain", "encrypted", "busy"):
            for number in range(1, 6):
                words = ("snapshot", "delete", f"{name}-{number}")
                give.run("zfsiloctl", *words, timeout_s=STEP_S, check=False)
            ctl(give, "volume", "delete", name, "--yes")
        assert leak_check.leaks(pair) == []

"""Runs on take: writes blocks to a file on the volume, each durably, and tells the outside.

    writer.py write FILE FROM      for ever: block FROM, FROM + 1, ...; after its fsync the number
                                   goes to the console, which a power cut of the machine leaves
    writer.py check FILE LAST      is every block up to LAST, as acknowledged, there and whole?

Block n lies in slot n % SLOTS, as its number and a checksum, over and over. The slot of the block
under way at a cut may hold this one or the one before, and is not checked.
"""

import os
import struct
import sys
import zlib

SLOTS = 2048
BLOCK = 4096
CONSOLE = "/dev/console"


def content(number: int) -> bytes:
    """Return the bytes of a block."""
    head = struct.pack(">Q", number)
    part = head + struct.pack(">I", zlib.crc32(head)) + b"zfsilo__"[:4]
    return part * (BLOCK // len(part))


def write(path: str, number: int) -> None:
    """Write blocks for ever."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    console = os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY)
    while True:
        os.pwrite(file, content(number), number % SLOTS * BLOCK)
        os.fsync(file)
        os.write(console, f"\r\nacknowledged {number}\r\n".encode())
        number += 1


def check(path: str, last: int) -> list[str]:
    """Return what is wrong with the blocks up to `last`."""
    wrong = []
    with open(path, "rb") as file:  # noqa: PTH123 - it runs alone
        for number in range(max(0, last - SLOTS + 2), last + 1):
            file.seek(number % SLOTS * BLOCK)
            found = file.read(BLOCK)
            newer = struct.unpack(">Q", found[:8])[0] if len(found) == BLOCK else -1
            if newer < number or found != content(newer):
                wrong.append(f"block {number}: {newer}, {'whole' if newer >= 0 else 'short'}")
    return wrong


if sys.argv[1] == "write":
    write(sys.argv[2], int(sys.argv[3]))
else:
    problems = check(sys.argv[2], int(sys.argv[3]))
    print("\n".join(problems[:5]))
    sys.exit(1 if problems else 0)

"""Runs on take: writes blocks to a file on the volume and acknowledges each after its fsync.

    writer.py write FILE FROM      blocks FROM, FROM + 1, ... without end; after each fsync the
                                   number is printed on the console, which survives a power cut
    writer.py check FILE LAST      check that all acknowledged blocks up to LAST are complete

Block n is stored in slot n % SLOTS, as its number and a checksum, repeated. The slot of the block
that is written during a cut may contain this block or the previous one; it is not checked.
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
    """Write blocks without end."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    console = os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY)
    while True:
        os.pwrite(file, content(number), number % SLOTS * BLOCK)
        os.fsync(file)
        os.write(console, f"\r\nacknowledged {number}\r\n".encode())
        number += 1


def check(path: str, last: int) -> list[str]:
    """Return the errors in the blocks up to `last`."""
    errors = []
    with open(path, "rb") as file:  # noqa: PTH123 - runs without the project
        for number in range(max(0, last - SLOTS + 2), last + 1):
            file.seek(number % SLOTS * BLOCK)
            block = file.read(BLOCK)
            stored = struct.unpack(">Q", block[:8])[0] if len(block) == BLOCK else -1
            if stored < number or block != content(stored):
                errors.append(f"block {number}: {stored}, {'whole' if stored >= 0 else 'short'}")
    return errors


if sys.argv[1] == "write":
    write(sys.argv[2], int(sys.argv[3]))
else:
    problems = check(sys.argv[2], int(sys.argv[3]))
    print("\n".join(problems[:5]))
    sys.exit(1 if problems else 0)

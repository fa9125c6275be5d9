"""Floods of HTTP/2: by a reader behind the gateway, and by strangers at it."""

from __future__ import annotations

from tests.siege.flood import JOIN, Flood

REMOTE = ("-H", JOIN, "info")
NEVER_READ = """
WATCH = b"/zfsilo.v1.OperationService/WatchOperations"
ends = []
for _number in range(8):
    end = hello(tls(READER))
    for stream in range(1, 64, 2):
        end.sendall(headers(stream, WATCH) + frame(0, 1, stream, bytes(5)))
    ends.append(end)
ready()
time.sleep(600)
"""
# A window of 0 bytes: the answers stay in the server.
SLOW_READING = """
ends = []
for _number in range(8):
    end = tls(READER)
    end.sendall(PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 0)))
    for stream in range(1, 256, 2):
        end.sendall(headers(stream) + frame(0, 1, stream, bytes(5)))
    ends.append(end)
ready()
while True:
    for end in ends:
        try:
            end.send(frame(8, 0, 0, struct.pack(">I", 1)))
        except OSError:
            pass
    time.sleep(0.05)
"""
# One entry of the table of headers, named again and again: 12 kB that stand for 40 MB.
BOMB = """
entry = b"\\x40\\1a\\x7f" + bytes([0x80 | (3900 - 127) % 128, (3900 - 127) // 128]) + b"v" * 3900
bomb = headers(1, more=entry + b"\\xbe" * 11000)
"""
BOMBS_OF_A_READER = """
ready()
while True:
    try:
        end = hello(tls(READER))
        for stream in range(1, 400, 2):
            end.sendall(bomb[:5] + struct.pack(">I", stream) + bomb[9:])
        while end.recv(65536):
            pass
    except OSError:
        pass
"""
# The answers are not waited for, and the settings of the server are never acknowledged.
HASTY_BOMBS = """
ready()
ends = []
while True:
    try:
        end = hello(tls(READER))
        end.settimeout(0.5)
        ends = [*ends[-20:], end]
        for stream in range(1, 400, 2):
            end.sendall(bomb[:5] + struct.pack(">I", stream) + bomb[9:])
    except OSError:
        pass
"""
BOMBS_OF_STRANGERS = """
ready()
number = 0
while True:
    number += 1
    try:
        end = hello(tls(source=f"127.0.5.{1 + number % 250}"))
        end.sendall(frame(4, 1) + bomb)
        while end.recv(65536):
            pass
    except OSError:
        pass
"""
# Codes of 30 bits: the slowest to decode.
LONG_CODES = """
coded = bytes.fromhex("fffffff3ffffffcfffffff3ffffffc") * 500
length = len(coded) - 127
block = b"\\0\\1a\\xff" + bytes([0x80 | length % 128, length // 128]) + coded
ready()
number = 0
while True:
    number += 1
    try:
        end = hello(tls(source=f"127.0.6.{1 + number % 250}"))
        end.sendall(frame(4, 1) + frame(1, 4, 1, block))
        while end.recv(65536):
            pass
    except OSError:
        pass
"""
LARGE_HEADERS = """
more = b"".join(literal(b"x-%03d" % number, b"v" * 100) for number in range(130))
ready()
while True:
    try:
        end = hello(tls(READER))
        for stream in range(1, 2000, 2):
            end.sendall(headers(stream, more=more) + frame(0, 1, stream, bytes(5)))
    except OSError:
        pass
"""
MUCH_DATA = """
ready()
while True:
    try:
        end = hello(tls(READER))
        for stream in range(1, 250, 2):
            begun = b"\\0\\0\\x0f\\xff\\xff" + bytes(500)
            end.sendall(headers(stream) + frame(0, 0, stream, begun))
        while True:
            end.sendall(frame(0, 0, 1, bytes(16000)))
    except OSError:
        pass
"""

FLOODS = [
    Flood("watches never read, of a reader", NEVER_READ, during=(REMOTE,)),
    Flood("slow reading, of a reader", SLOW_READING, during=(REMOTE,)),
    Flood("header bombs, of a reader", BOMB + BOMBS_OF_A_READER, during=(REMOTE,)),
    Flood("header bombs in haste, of a reader", BOMB + HASTY_BOMBS, copies=2, during=(REMOTE,)),
    Flood("header bombs, of strangers", BOMB + BOMBS_OF_STRANGERS, copies=2, during=(REMOTE,)),
    Flood("long codes, of strangers", LONG_CODES, copies=2, during=(REMOTE,)),
    Flood("large headers, of a reader", LARGE_HEADERS, during=(REMOTE,)),
    Flood("requests without an end, of a reader", MUCH_DATA, during=(REMOTE,)),
]

"""Floods over the network: strangers, and a reader with a certificate."""

from __future__ import annotations

from tests.siege.flood import JOIN, Flood

REMOTE = ("-H", JOIN, "info")

IDLE_TLS = """
ends = []
for number in range(500):
    try:
        ends.append(tls(source=f"127.0.1.{1 + number % 250}"))
    except OSError:
        pass
ready()
time.sleep(600)
"""
STREAMS_WITHOUT_A_BODY = """
ends = [hello(tls(READER)) for _number in range(8)]
for end in ends:
    for stream in range(1, 257, 2):
        end.sendall(headers(stream))
ready()
time.sleep(600)
"""

UPDATES_OF_THE_KEY = """
import subprocess
clients = []
for number in range(4):
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", "127.0.0.1:9750", "-alpn", "h2"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    client.stdin.write(b"k\\n" * 200_000)
    clients.append(client)
ready()
time.sleep(600)
"""
SLOW_HANDSHAKES = """
ends = []
for number in range(1000):
    end = tcp(source=f"127.0.2.{1 + number % 250}")
    end.sendall(b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01")
    ends.append(end)
ready()
while True:
    for end in ends:
        try:
            end.send(b"\\xfc")
        except OSError:
            pass
    time.sleep(1)
"""
HANDSHAKES = """
ready()
number = 0
while True:
    number += 1
    try:
        tls(source=f"127.0.3.{1 + number % 250}").close()
    except OSError:
        pass
"""
GUESSES = """
ready()
number = 0
while True:
    try:
        end = hello(tls(source=f"127.0.4.{1 + number % 250}"))
        for number in range(1, 40, 2):
            token = b"Bearer zfsilo-" + b"0" * 26 + b"-" + b"%064d" % number
            more = b"\\0" + bytes([13]) + b"authorization" + bytes([len(token)]) + token
            end.sendall(headers(number, more=more) + frame(0, 1, number, bytes(5)))
        while end.recv(65536):
            pass
    except OSError:
        pass
    number += 1
"""


def _frames(body: str) -> str:
    """Return a program that sends the frames of an expression over a reader's connection."""
    return f"""
ready()
while True:
    try:
        end = hello(tls(READER))
        while True:
            end.sendall({body})
    except OSError:
        pass
"""


FLOODS = [
    Flood("idle TLS connections", IDLE_TLS, during=(REMOTE,)),
    Flood("streams without a body, of a reader", STREAMS_WITHOUT_A_BODY, during=(REMOTE,)),
    Flood("updates of the TLS key", UPDATES_OF_THE_KEY, during=(REMOTE,)),
    Flood("slow handshakes", SLOW_HANDSHAKES, during=(REMOTE,)),
    Flood("handshakes without a certificate", HANDSHAKES, copies=2, during=(REMOTE,)),
    Flood("guessed tokens", GUESSES, copies=2, during=(REMOTE,)),
    Flood("settings frames, of a reader", _frames("frame(4) * 100")),
    Flood("ping frames, of a reader", _frames("frame(6, 0, 0, bytes(8)) * 100")),
    Flood("empty data frames, of a reader", _frames("headers(1) + frame(0, 0, 1) * 1000")),
    Flood(
        "reset streams, of a reader",
        _frames(
            "b''.join(headers(s) + frame(3, 0, s, bytes([0, 0, 0, 8])) for s in range(1, 99, 2))"
        ),
    ),
    Flood(
        "continuation frames, of a reader",
        _frames("headers(1, flags=0) + frame(9, 0, 1, b'\\0\\1a\\1b') * 10000"),
    ),
]

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

FLOODS = [
    Flood("idle TLS connections", IDLE_TLS, during=(REMOTE,)),
    Flood("streams without a body, of a reader", STREAMS_WITHOUT_A_BODY, during=(REMOTE,)),
]

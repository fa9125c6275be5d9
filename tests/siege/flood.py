"""A flood: a program that runs inside the machine, and what must hold beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flood:
    """One program, as text for the Python of the machine: it has the standard library only.

    It prints a line when its load is in place, holds or repeats the load, and is killed in the end.
    `PREAMBLE` is in front of it: see there for what it can use.
    """

    name: str
    program: str
    uid: int = 65534
    copies: int = 1
    # Commands of zfsiloctl that have to work beside the flood; -H takes the join file of an
    # administrator: ("-H", JOIN, "info").
    during: tuple[tuple[str, ...], ...] = ()
    before: tuple[tuple[str, ...], ...] = ()  # commands that prepare it
    refused: tuple[tuple[str, ...], ...] = ()  # commands that have to be refused beside it
    after: str = ""  # a program of root that removes what the flood has left
    p99_ratio: float = 2.0


JOIN = "/root/ops.join"
READER = "/run/reader.pem"  # certificate and key of a reader, for every user of the machine
PREAMBLE = f"""
import os, socket, ssl, struct, sys, time
os.nice(19)
READER = {READER!r}
PORT = 9750

def ready():
    print("ready", flush=True)

def tcp(address="127.0.0.1", source=None):
    return socket.create_connection((address, PORT), 10, (source, 0) if source else None)

def tls(certificate=None, source=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if certificate:
        context.load_cert_chain(certificate)
    return context.wrap_socket(tcp(source=source))

def local(path="/run/zfsilo/zfsilod.sock"):
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(10)
    end.connect(path)
    return end

PREFACE = b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"

def frame(kind, flags=0, stream=0, body=b""):
    head = struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
    return head + body

def literal(name, value):
    return b"\\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

def headers(stream, method=b"/zfsilo.v1.VolumeService/ListVolumes", more=b"", flags=4):
    block = b"\\x83\\x86" + literal(b":path", method) + literal(b":authority", b"x")
    block += literal(b"t" b"e", b"trailers") + literal(b"content-type", b"application/grpc")
    return frame(1, flags, stream, block + more)

def hello(end):
    end.sendall(PREFACE + frame(4))
    return end
"""

"""A stream between two servers, beside socat with OpenSSL: `python -m tests.bench.streams`.

Both carry a file of random bytes over TLS 1.3 with two certificates on the loopback: `cat` in place
of `zfs send`, and another one in place of `zfs receive`. Of zfsilo these are the process that has
the connection (gateway/dial.py), and a gateway, which is another process. They run in turns, since
the machine has other work too: the ratio counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.api.running import made, write_pki
from tests.bench.rounds import rounds
from tests.bench.table import Figure, at_least
from tests.setup import apt
from zfsilod.gateway import packets
from zfsilod.gateway.connections import Connections
from zfsilod.gateway.sockets import listen_tcp, listen_unix
from zfsilod.model.identity import Identity
from zfsilod.security import certificates
from zfsilod.security.tls import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SIZE = 256 * MIB
ROUNDS, SHARE_S = 5, 90
TARGET = 70  # percent of socat
PEER = Identity(kind="user", id="give", role="replica")
SWITCHED = b"HTTP/1.1 101 \r\nUpgrade: zfsilo-stream\r\nConnection: upgrade\r\n\r\n"
READY_S = 30.0


async def serve() -> None:
    """Serve a gateway whose connections are read to their end; print its port and certificates."""
    with tempfile.TemporaryDirectory() as directory:
        own = TlsFiles(Path(directory) / "tls")
        write_pki(own.files)
        gateway = Connections(Path(directory) / "private", None, own)
        gateway.admission.check = lambda _peer, _digest: None  # as for a valid certificate
        listener = listen_unix(gateway.backend.http_socket)
        listener.settimeout(0)
        tcp = listen_tcp("127.0.0.1", 0)
        gateway.listen(tcp)
        taking = asyncio.get_running_loop().create_task(take(listener, gateway))
        pair, server = certificates.issue(made("ca"), PEER, days=1), made("give")
        pems = {
            "authority": made("ca").certificate_pem,
            "certificate": pair.certificate_pem,
            "key": pair.key_pem,
            "server": server.key_pem + server.certificate_pem,
        }
        where = {name: pem.decode() for name, pem in pems.items()}
        where["address"] = f"127.0.0.1:{tcp.getsockname()[1]}"
        print(json.dumps(where | {"tls_name": "give.zfsilo", "token": ""}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        taking.cancel()
        gateway.close()


async def take(listener: socket.socket, gateway: Connections) -> None:
    """Answer each connection as zfsilod does, and hand its socket to another process."""
    loop = asyncio.get_running_loop()
    while True:
        connection, name = await loop.sock_accept(listener)
        with connection:
            connection.settimeout(0)
            head = b""
            while not head.endswith(b"{}"):  # the body
                head += await loop.sock_recv(connection, 4096)
            gateway.backend.carry_stream(str(name))
            await loop.sock_sendall(connection, SWITCHED)
            connection.settimeout(None)
            sink = await asyncio.create_subprocess_exec(
                "cat", stdin=connection.fileno(), stdout=asyncio.subprocess.DEVNULL
            )
        await sink.wait()


def carry(access: dict[str, Any], file: Path) -> float:
    """Send the file as a stream; return the seconds."""
    control, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    source, stream = socket.socketpair()
    secrets = packets.to_file({})
    with control, own, source, stream:
        packets.send(control, access | {"path": "/", "body": "{}", "rate": 0}, secrets)
        os.close(secrets)
        packets.send(control, {"tell": "stream"}, stream.fileno())
        dial = (sys.executable, "-m", "zfsilod.gateway.main", "dial")
        with subprocess.Popen(dial, stdin=own.fileno()) as dialer:
            stream.close()
            own.close()
            opened = packets.receive(control)
            assert opened == ({"tell": "opened"}, None), opened
            began = time.monotonic()
            with subprocess.Popen(("cat", str(file)), stdout=source.fileno()):
                source.close()
                told: Any = {}
                while told.get("tell") != "ended":
                    told, _descriptor = packets.receive(control) or ({"tell": "ended"}, None)
            took = time.monotonic() - began
    assert (told.get("why"), told.get("bytes")) == ("", SIZE), told
    assert dialer.returncode == 0
    return took


def socat(files: dict[str, Path], file: Path) -> float:
    """Send the file by socat with OpenSSL; return the seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checked = f"cafile={files['ca']},verify=1,openssl-min-proto-version=TLS1.3"
    listen = f"OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,cert={files['server']},{checked}"
    to = f"OPENSSL:127.0.0.1:{port},commonname=give.zfsilo,cert={files['client']},{checked}"
    with ExitStack() as stack:

        def start(*argv: str, stdin: Any = None, stdout: Any = subprocess.PIPE) -> Any:
            process = subprocess.Popen(argv, stdin=stdin, stdout=stdout)
            return stack.enter_context(process)

        sink = start("socat", "-u", listen, "STDOUT")
        reader = start("cat", stdin=sink.stdout, stdout=subprocess.DEVNULL)
        wait_for(port)
        began = time.monotonic()
        source = start("cat", str(file))
        sender = start("socat", "-u", "STDIN", to, stdin=source.stdout)
        for process in (sender, sink):
            assert process.wait(READY_S * 10) == 0, process.args
        took = time.monotonic() - began
        for end in (sink, source):
            end.stdout.close()
        reader.wait()
    return took


def wait_for(port: int) -> None:
    """Wait until a port listens, without a connection to it: socat takes only one."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        listening = Path("/proc/net/tcp").read_text().splitlines()
        if any(f":{port:04X} 00000000:0000 0A" in line for line in listening):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens at port {port}")


def compare(count: int) -> tuple[list[float], list[float]]:
    """Return the seconds of zfsilo and of socat, in turns."""
    apt.install(("socat",), reason="the bench of streams")
    ours: list[float] = []
    theirs: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        file = folder / "stream"
        with file.open("wb") as writing:
            for _mib in range(SIZE // MIB):
                writing.write(os.urandom(MIB))
        gateway = stack.enter_context(
            subprocess.Popen(
                (sys.executable, "-m", "tests.bench.streams", "serve"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert gateway.stdin is not None
        assert gateway.stdout is not None
        stack.callback(gateway.stdin.close)
        access = json.loads(gateway.stdout.readline())
        files = {name: folder / name for name in ("ca", "server", "client")}
        files["ca"].write_text(access["authority"])
        files["server"].write_text(access["server"])
        files["client"].write_text(access["key"] + access["certificate"])
        for number in rounds(count, SHARE_S):
            for turn in (number, number + 1):
                if turn % 2:
                    ours.append(carry(access, file))
                else:
                    theirs.append(socat(files, file))
    return ours, theirs


def figures() -> Iterator[Figure]:
    """Measure, and compare with the target."""
    ours, theirs = compare(ROUNDS)
    shares = [100 * their / own for own, their in zip(ours, theirs, strict=True)]
    speeds = [SIZE / MIB / median(times) for times in (ours, theirs)]
    note = " ({:.0f} and {:.0f} MiB a second".format(*speeds)
    note += f"; {min(shares):.0f} to {max(shares):.0f} % in {len(shares)} rounds; {ssl_version()})"
    name = "bytes a second of a stream to a peer, of those of socat with OpenSSL"
    yield at_least(name, median(shares), TARGET, " %", note=note)


def ssl_version() -> str:
    """Return the version of OpenSSL that Python uses."""
    return ssl.OPENSSL_VERSION.partition("  ")[0]


def main() -> None:
    """Measure, and print the figure."""
    for figure in figures():
        print("  ".join(figure.cells))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        with suppress(asyncio.CancelledError):
            asyncio.run(serve())
    else:
        main()

"""`make siege [FLOODS="WORD ..."]`: every flood against a real systemd; a table of what it cost.

A flood runs in namespaces, over the loopback of its own network. Beside it root calls GetVolume on
the local socket; the 99th percentile may be P99_RATIO times the one just before. Afterwards a
volume is created and deleted, locally and over the gateway.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import grpc

from tests.siege import bus, http2, network, records
from tests.siege.flood import JOIN, PREAMBLE, READER, Flood
from tests.siege.latency import Latency, latency, start_control
from tests.systemd.namespace import InnerCommandFailed
from tests.systemd.simulated import CONFIG, ctl, simulated_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.inner_process import InnerProcess
    from tests.systemd.namespace import SystemdHost

FLOODS = [*network.FLOODS, *http2.FLOODS, *bus.FLOODS, *records.FLOODS]
QUIET_S, LOADED_S = 1.0, 3.0
STORE = "\n[store]\nsize_bytes = 67108864\n"  # so that floods could fill it
FLOOR_MS = 20.0  # below it a ratio says nothing: the machine has other work
READY_S = 40.0
HEAD = (
    f"{'local call, p99 in ms':40}{'quiet':>8}{'loaded':>8}{'ratio':>7}"
    f"{'control':>8}{'loaded':>8}{'others':>8}{'zfsilod':>8}"
)
ATTEMPTS = 2  # a busy machine may delay any call once


class Measured:
    """The latency of local calls, and what did not hold."""

    def __init__(self) -> None:
        self.quiet: Latency | None = None
        self.loaded: Latency | None = None
        self.failures: list[str] = []

    def __str__(self) -> str:
        quiet, loaded = self.quiet, self.loaded
        if quiet is None or loaded is None:
            return ""
        return (
            f"{quiet.local_ms:8.1f}{loaded.local_ms:8.1f}{loaded.local_ms / quiet.local_ms:7.1f}"
            f"{quiet.control_ms:8.1f}{loaded.control_ms:8.1f}"
            f"{100 * loaded.others:7.0f}%{100 * loaded.daemon:7.0f}%"
        )

    def compare(self, p99_ratio: float) -> None:
        """Compare the latency beside the flood with the quiet one."""
        if self.quiet is None or self.loaded is None:
            return
        allowed_ms = max(p99_ratio * self.quiet.local_ms, FLOOR_MS)
        allowed_ms += self.loaded.machine_ms(self.quiet)
        if self.loaded.local_ms > allowed_ms:
            text = f"local call p99 {self.loaded.local_ms:.1f} > {allowed_ms:.1f} ms"
            self.failures.append(text)


@contextlib.contextmanager
def besieged() -> Iterator[SystemdHost]:
    """Boot a machine with a gateway, an administrator's join file and a reader's certificate."""
    with simulated_host() as sd:
        sd.run("systemctl", "stop", "zfsilod.socket", "zfsilod.service")
        sd.run("rm", "-r", "/var/lib/zfsilo/store")  # LMDB keeps the size of the first start
        sd.write("/etc/zfsilo/zfsilod.toml", CONFIG + STORE)
        sd.run("systemctl", "start", "zfsilod.socket", "zfsilod.service")
        ctl(sd, "adopt", "--all")  # the pool belongs to the store that was removed
        ctl(sd, "host", "add", "take", "--iqn", "iqn.2024-01.lab.take:host")
        ctl(sd, "pki", "init", "--name", "localhost")
        issue = ("pki", "issue", "user", "ops", "--role", "admin", "--address", "127.0.0.1")
        ctl(sd, *issue, "--file", JOIN)
        for role in ("reader", "controller"):
            of_role = ("pki", "issue", "user", role, "--role", role, "--address", "127.0.0.1")
            ctl(sd, *of_role, "--file", f"/run/{role}.join")
        of_host = ("pki", "issue", "host", "siege", "--address", "127.0.0.1")
        ctl(sd, *of_host, "--file", "/run/siege.join")
        sd.run("/usr/bin/python3", "-c", TO_PEM)
        ctl(sd, "volume", "create", "data", "1G")
        sd.run("systemctl", "enable", "--now", "zfsilod-tcp.socket")
        start_control(sd)
        yield sd


TO_PEM = f"""
import tomllib
from pathlib import Path
join = tomllib.loads(Path("/run/reader.join").read_text())
Path({READER!r}).write_text(join["key"] + join["certificate"])
for name in ("reader.pem", "reader.join", "controller.join", "siege.join"):
    Path("/run", name).chmod(0o644)
"""


@contextlib.contextmanager
def running(sd: SystemdHost, flood: Flood) -> Iterator[None]:
    """Start a flood, wait until its load is in place, and kill it in the end."""
    with contextlib.ExitStack() as stack:
        for _copy in range(flood.copies):
            argv = ("/usr/bin/python3", "-c", PREAMBLE + flood.program)
            process = stack.enter_context(sd.start(*argv, uid=flood.uid))
            stack.callback(process.kill_all)
            _wait_ready(flood, process)
        yield


def _wait_ready(flood: Flood, process: InnerProcess) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "ready\n":
        _rest, errors = process.communicate(timeout=10)
        raise SystemExit(f"{flood.name} did not start: {errors}")


def besiege(sd: SystemdHost, flood: Flood) -> Measured:
    """Run one flood, and return what it did."""
    measured = Measured()
    for words in flood.before:
        _try(sd, measured, "before", *words)
    measured.quiet = latency(sd, QUIET_S)
    with running(sd, flood):
        try:
            measured.loaded = latency(sd, LOADED_S)
        except grpc.RpcError as error:
            measured.failures.append(f"a local call failed: {error}")
        for words in flood.during:
            _try(sd, measured, "beside it", *words)
        for words in flood.refused:
            if ctl(sd, "--timeout", "20", *words, check=False).rc == 0:
                measured.failures.append(f"not refused: {' '.join(words)}")
    if flood.after:
        sd.run("/usr/bin/python3", "-c", PREAMBLE + flood.after)
    measured.compare(flood.p99_ratio)
    for where in ((), ("-H", JOIN)):
        _try(sd, measured, "afterwards", *where, "volume", "create", "siege", "1G")
        _try(sd, measured, "afterwards", *where, "volume", "delete", "siege", "--yes")
    return measured


def _try(sd: SystemdHost, measured: Measured, when: str, *words: str) -> None:
    try:
        ctl(sd, "--timeout", "20", *words)
    except InnerCommandFailed as error:
        measured.failures.append(f"{when}: {error}")


def main() -> int:
    """Run the floods that are named, or all; exit 1 when something did not hold."""
    words = sys.argv[1:]
    chosen = [f for f in FLOODS if not words or any(word in f.name for word in words)]
    failed = 0
    with besieged() as sd:
        print(HEAD)
        for flood in chosen:
            for _attempt in range(ATTEMPTS):
                measured = besiege(sd, flood)
                if not measured.failures:
                    break
            print(f"{flood.name:40}{measured}", flush=True)
            for failure in measured.failures:
                print(f"    {failure}", flush=True)
            failed += bool(measured.failures)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

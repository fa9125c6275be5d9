"""The latency of root's local calls, beside that of a control which no flood reaches.

The control is an echo over grpc in a unit of zfsilo.slice. On a machine that has other work, two
delays are not held against zfsilod: the time for which its event loop was ready and waited for a
processor, and what is added to the control; each by the share that this work has in the busy time
of the processors. On a quiet machine the share is 0, and a delay is zfsilod's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from zfsilo.v1 import volume_pb2 as pb

from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.systemd.namespace import SystemdHost

REQUEST = pb.GetVolumeRequest(name="volumes/data")
PAUSE_S = 0.003
DEADLINE_S = 10
SOCKET = "/run/siege-control.sock"
DAEMON, CONTROL_UNIT = "zfsilod.service", "siege-control.service"
ECHO = "/siege/Echo"
CONTROL = f"""
import asyncio, sys
sys.path.insert(0, "/usr/lib/zfsilo")
import grpc

async def echo(request, _context):
    return request

async def serve():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler("siege", {{"Echo": handler}}),
    ))
    server.add_insecure_port("unix:{SOCKET}")
    await server.start()
    await server.wait_for_termination()

asyncio.run(serve())
"""


@dataclass(frozen=True)
class Latency:
    """The 99th percentiles of some seconds, and whose work the processors did meanwhile."""

    local_ms: float
    control_ms: float
    others: float  # the share of the busy processors that other work on the machine had
    daemon: float  # processors that zfsilod used

    def machine_ms(self, quiet: Latency) -> float:
        """Return how much of a delay against `quiet` is the work of others on the machine."""
        return max(0.0, self.control_ms - quiet.control_ms) * self.others


def start_control(sd: SystemdHost) -> None:
    """Start the control, and wait until it answers."""
    sd.run(
        "systemd-run", f"--unit={CONTROL_UNIT}", "--slice=zfsilo.slice", "python3", "-c", CONTROL
    )
    with _channel(sd, SOCKET) as channel:
        grpc.channel_ready_future(channel).result(timeout=20)


def latency(sd: SystemdHost, seconds: float) -> Latency:
    """Call GetVolume and the control in turns; a call that fails raises grpc.RpcError."""
    local, control = Calls(sd, DAEMON), Calls(sd, CONTROL_UNIT)
    with _channel(sd, "/run/zfsilo/zfsilod.sock") as to_daemon, _channel(sd, SOCKET) as to_control:
        volumes, echo = Api(to_daemon).volumes, to_control.unary_unary(ECHO)
        volumes.GetVolume(REQUEST, timeout=DEADLINE_S)
        echo(b"", timeout=DEADLINE_S)
        before, since = _used_s(sd), time.monotonic()
        while time.monotonic() < since + seconds:
            local.time(lambda: volumes.GetVolume(REQUEST, timeout=DEADLINE_S))
            control.time(lambda: echo(bytes(200), timeout=DEADLINE_S))
            time.sleep(PAUSE_S)
    took = time.monotonic() - since
    busy, own, daemon = (now - then for now, then in zip(_used_s(sd), before, strict=True))
    others = max(0.0, 1 - own / busy) if busy else 0.0
    return Latency(local.percentile(others), control.percentile(others), others, daemon / took)


class Calls:
    """The times of calls of one server, and for how long its event loop waited meanwhile."""

    def __init__(self, sd: SystemdHost, unit: str) -> None:
        (pid,) = (_slice(sd) / unit / "cgroup.procs").read_text().split()
        self._schedstat = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._times: list[tuple[float, float]] = []

    def time(self, call: Callable[[], object]) -> None:
        """Make a call."""
        waited, start = self._waited_ms(), time.monotonic()
        call()
        took = (time.monotonic() - start) * 1e3
        self._times.append((took, min(took, self._waited_ms() - waited)))

    def percentile(self, others: float) -> float:
        """Return the 99th percentile, in ms, without the waits for the work of others."""
        times = sorted(took - others * waited for took, waited in self._times)
        return times[len(times) * 99 // 100]

    def _waited_ms(self) -> float:
        return int(self._schedstat.read_text().split()[1]) / 1e6


def _channel(sd: SystemdHost, path: str) -> grpc.Channel:
    return grpc.insecure_channel(f"unix:{sd.root}{path}")


def _slice(sd: SystemdHost) -> Path:
    return sd.cgroup_procs.parent.parent / "zfsilo.slice"


def _used_s(sd: SystemdHost) -> tuple[float, float, float]:
    """Return the processor time of everything, of the siege, and of zfsilod."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = ticks[:7]
    own = _cpu_s(_slice(sd).parent) + time.process_time()
    daemon = _cpu_s(_slice(sd) / DAEMON)
    return (user + nice + system + irq + softirq) / 100, own, daemon


def _cpu_s(cgroup: Path) -> float:
    words = (cgroup / "cpu.stat").read_text().split()
    return int(words[words.index("usage_usec") + 1]) / 1e6

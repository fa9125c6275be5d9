"""Client that runs inside a machine, calls its zfsilod, and prints times as JSON.

inside.py changes VOLUME ROUNDS            grow, publish and unpublish one volume
inside.py throughput CLIENTS CALLS         many clients with a volume each, CALLS changes in total
inside.py first                            the first answer over a new channel
inside.py python ROUNDS [ARGUMENT...]      starts of this Python
inside.py lifecycle REQUEST...             requests for one volume, one after the other
inside.py fill COUNT                       create and publish so many volumes
inside.py exported COUNT                   wait for so many exports; seconds since the boot
inside.py clear                            remove all exports from configfs
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

LIBRARY = "/usr/lib/zfsilo"
sys.path.insert(0, LIBRARY)

import grpc  # noqa: E402
from zfsilo.v1 import service_pb2  # noqa: E402
from zfsilo.v1 import volume_pb2 as pb  # noqa: E402

from zfsilod.wire.stub import Api  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET = Path("/run/zfsilo/zfsilod.sock")
DEADLINE_S = 120
GIB, SMALL, STEP = 1 << 30, 16 << 20, 1 << 20
HOST = "take"
VOLUME = "bench"
PATH = "/srv/bench"
AT_ONCE = 32  # they share units
TARGET = Path("/sys/kernel/config/target")
GROUP = "iscsi/iqn.*/tpgt_1"
LOOK_S = 0.05
NAME = f"volumes/{VOLUME}"


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class BenchClient:
    """The requests of a volume, over one channel."""

    def __init__(self) -> None:
        self.api = Api(grpc.insecure_channel(f"unix:{SOCKET}"))

    def send(self, method: str, request: Any) -> None:
        """Call a method and wait for its answer."""
        getattr(self.api.volumes, method)(request, timeout=DEADLINE_S)

    def greet(self) -> None:
        """Make a call that does no work."""
        request = service_pb2.GetServerInfoRequest()
        self.api.service.GetServerInfo(request, timeout=DEADLINE_S, wait_for_ready=True)

    def create(self, volume: str, capacity_bytes: int = GIB) -> None:
        """Create a volume that may be published."""
        volume_message = pb.Volume(
            capacity_bytes=capacity_bytes, thin=True, mode=pb.MODE_FILESYSTEM, hosts=[HOST]
        )
        self.send("CreateVolume", pb.CreateVolumeRequest(volume_id=volume, volume=volume_message))

    def grow(self, volume: str, capacity_bytes: int) -> None:
        """Make a volume larger."""
        grown = pb.Volume(name=f"volumes/{volume}", capacity_bytes=capacity_bytes)
        request = pb.UpdateVolumeRequest(volume=grown)
        request.update_mask.paths.append("capacity_bytes")
        self.send("UpdateVolume", request)

    def publish(self, volume: str) -> None:
        """Publish a volume to the host."""
        self.send(
            "PublishVolume", pb.PublishVolumeRequest(name=f"volumes/{volume}", host=f"hosts/{HOST}")
        )

    def unpublish(self, volume: str) -> None:
        """Unpublish a volume from the host."""
        self.send(
            "UnpublishVolume",
            pb.UnpublishVolumeRequest(name=f"volumes/{volume}", host=f"hosts/{HOST}"),
        )

    def delete(self, volume: str) -> None:
        """Delete a volume."""
        self.send("DeleteVolume", pb.DeleteVolumeRequest(name=f"volumes/{volume}"))


def changes(volume: str, rounds: int) -> dict[str, list[float]]:
    """Return the times of changes of one volume, one after the other."""
    client = BenchClient()
    client.create(volume)
    taken: dict[str, list[float]] = {"update": [], "publish": [], "unpublish": []}
    for number in range(1, rounds + 1):
        taken["update"].append(timed(partial(client.grow, volume, GIB + number * STEP)))
        taken["publish"].append(timed(lambda: client.publish(volume)))
        taken["unpublish"].append(timed(lambda: client.unpublish(volume)))
    client.delete(volume)
    return taken


def throughput(clients: int, calls: int) -> float:
    """Return the changes a second of so many clients, each with a volume of its own."""
    pairs = [(BenchClient(), f"many-{number}") for number in range(clients)]
    for client, volume in pairs:
        client.create(volume)

    def work(item: tuple[BenchClient, str]) -> None:
        client, volume = item
        for number in range(1, calls // clients + 1):
            client.grow(volume, GIB + number * STEP)

    with ThreadPoolExecutor(clients) as threads:
        seconds = timed(lambda: list(threads.map(work, pairs)))
    for client, volume in pairs:
        client.delete(volume)
    return calls // clients * clients / seconds


def python(rounds: int, *arguments: str) -> list[float]:
    """Time starts of this Python."""
    argv = [sys.executable, *arguments]
    return [timed(lambda: subprocess.run(argv, check=True)) for _round in range(rounds)]


def lifecycle(*requests: str) -> dict[str, float]:
    """Return the times of requests for the one volume, on a warm channel."""
    client = BenchClient()
    client.greet()
    connect = pb.ConnectVolumeRequest(server="give", volume=VOLUME)
    stage = pb.StageVolumeRequest(name=NAME, fs_type="ext4")
    mount = pb.MountVolumeRequest(name=NAME, path=PATH)
    unmount = pb.UnmountVolumeRequest(name=NAME, path=PATH)
    unstage = pb.UnstageVolumeRequest(name=NAME)
    disconnect = pb.DisconnectVolumeRequest(name=NAME)
    attach = pb.AttachVolumeRequest(server="give", volume=VOLUME, path=PATH, fs_type="ext4")
    detach = pb.DetachVolumeRequest(name=NAME)
    steps: dict[str, Callable[[], None]] = {
        "create": lambda: client.create(VOLUME),
        "publish": lambda: client.publish(VOLUME),
        "connect": lambda: client.send("ConnectVolume", connect),
        "stage": lambda: client.send("StageVolume", stage),
        "mount": lambda: client.send("MountVolume", mount),
        "unmount": lambda: client.send("UnmountVolume", unmount),
        "unstage": lambda: client.send("UnstageVolume", unstage),
        "disconnect": lambda: client.send("DisconnectVolume", disconnect),
        "attach": lambda: client.send("AttachVolume", attach),
        "detach": lambda: client.send("DetachVolume", detach),
        "unpublish": lambda: client.unpublish(VOLUME),
        "delete": lambda: client.delete(VOLUME),
    }
    return {request: timed(steps[request]) for request in requests}


def fill(count: int) -> float:
    """Create and publish volumes, many at once; return the seconds."""
    client = BenchClient()

    def make(volume: str) -> None:
        client.create(volume, SMALL)
        client.publish(volume)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return timed(lambda: list(threads.map(make, (f"v{n:03}" for n in range(count)))))


def exported(count: int) -> float:
    """Wait until so many targets are enabled with a LUN for their host; return the uptime."""
    while _enabled() < count or len(_links("acls/*/lun_0/*")) < count:
        time.sleep(LOOK_S)  # configfs sends no events
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _enabled() -> int:
    return sum(path.read_text() == "1\n" for path in TARGET.glob(f"{GROUP}/enable"))


def _links(below: str) -> list[Path]:
    return [path for path in TARGET.glob(f"{GROUP}/{below}") if path.is_symlink()]


def clear() -> str:
    """Remove all exports from configfs, without any tool."""
    for path in TARGET.glob(f"{GROUP}/enable"):
        path.write_text("0")
    for link in (*_links("acls/*/lun_0/*"), *_links("lun/lun_0/*")):
        link.unlink()
        link.parent.rmdir()
    for pattern in (f"{GROUP}/acls/*", f"{GROUP}/np/*", GROUP, "iscsi/iqn.*"):
        for folder in TARGET.glob(pattern):
            folder.rmdir()
    for path in TARGET.glob("core/iblock_*/*/enable"):
        path.parent.rmdir()
    return "cleared"


def main(mode: str, *words: str) -> object:
    """Run one mode of the command line."""
    match mode:
        case "changes":
            return changes(words[0], int(words[1]))
        case "throughput":
            return throughput(int(words[0]), int(words[1]))
        case "python":
            return python(int(words[0]), *words[1:])
        case "fill":
            return fill(int(words[0]))
        case "exported":
            return exported(int(words[0]))
        case "clear":
            return clear()
        case "first":
            return timed(lambda: BenchClient().greet())
    return lifecycle(*words)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

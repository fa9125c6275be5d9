"""Runs inside a machine as one client of its zfsilod, and prints what calls took as JSON.

inside.py changes VOLUME ROUNDS            grow one volume; publish it and take that back
inside.py throughput CLIENTS CALLS         many clients, a volume each, so many changes in all
inside.py first                            the first answer over a new channel
inside.py python ROUNDS [ARGUMENT...]      starts of this Python
inside.py ladder VERB...                   requests of one volume, one after the other
inside.py fill COUNT                       make so many volumes, and publish them
inside.py exported COUNT                   wait for so many exports; seconds since the boot
inside.py clear                            take all exports away, whoever made them
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
LADDER = "bench"
PATH = "/srv/bench"
AT_ONCE = 4
TARGET = Path("/sys/kernel/config/target")
GROUP = "iscsi/iqn.*/tpgt_1"
LOOK_S = 0.05
NAME = f"volumes/{LADDER}"


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


class Client:
    """The requests of a volume, over one channel."""

    def __init__(self) -> None:
        self.api = Api(grpc.insecure_channel(f"unix:{SOCKET}"))

    def send(self, method: str, request: Any) -> None:
        """Call a method and wait for its answer."""
        getattr(self.api.volumes, method)(request, timeout=DEADLINE_S)

    def greet(self) -> None:
        """Ask for something that costs nothing."""
        request = service_pb2.GetServerInfoRequest()
        self.api.service.GetServerInfo(request, timeout=DEADLINE_S, wait_for_ready=True)

    def create(self, volume: str, capacity_bytes: int = GIB) -> None:
        """Create a volume that may be published."""
        made = pb.Volume(
            capacity_bytes=capacity_bytes, thin=True, mode=pb.MODE_FILESYSTEM, hosts=[HOST]
        )
        self.send("CreateVolume", pb.CreateVolumeRequest(volume_id=volume, volume=made))

    def grow(self, volume: str, capacity_bytes: int) -> None:
        """Make a volume larger."""
        grown = pb.Volume(name=f"volumes/{volume}", capacity_bytes=capacity_bytes)
        request = pb.UpdateVolumeRequest(volume=grown)
        request.update_mask.paths.append("capacity_bytes")
        self.send("UpdateVolume", request)

    def publish(self, volume: str) -> None:
        """Let the host in."""
        self.send(
            "PublishVolume", pb.PublishVolumeRequest(name=f"volumes/{volume}", host=f"hosts/{HOST}")
        )

    def unpublish(self, volume: str) -> None:
        """Let the host out."""
        self.send(
            "UnpublishVolume",
            pb.UnpublishVolumeRequest(name=f"volumes/{volume}", host=f"hosts/{HOST}"),
        )

    def delete(self, volume: str) -> None:
        """Delete a volume."""
        self.send("DeleteVolume", pb.DeleteVolumeRequest(name=f"volumes/{volume}"))


def changes(volume: str, rounds: int) -> dict[str, list[float]]:
    """Time changes of one volume, one after the other."""
    client = Client()
    client.create(volume)
    taken: dict[str, list[float]] = {"update": [], "publish": [], "unpublish": []}
    for number in range(1, rounds + 1):
        taken["update"].append(timed(partial(client.grow, volume, GIB + number * STEP)))
        taken["publish"].append(timed(lambda: client.publish(volume)))
        taken["unpublish"].append(timed(lambda: client.unpublish(volume)))
    client.delete(volume)
    return taken


def throughput(clients: int, calls: int) -> float:
    """Return how many changes a second so many clients make, each of a volume of its own."""
    made = [(Client(), f"many-{number}") for number in range(clients)]
    for client, volume in made:
        client.create(volume)

    def work(given: tuple[Client, str]) -> None:
        for number in range(1, calls // clients + 1):
            given[0].grow(given[1], GIB + number * STEP)

    with ThreadPoolExecutor(clients) as threads:
        seconds = timed(lambda: list(threads.map(work, made)))
    for client, volume in made:
        client.delete(volume)
    return calls // clients * clients / seconds


def python(rounds: int, *arguments: str) -> list[float]:
    """Time starts of this Python."""
    argv = [sys.executable, *arguments]
    return [timed(lambda: subprocess.run(argv, check=True)) for _round in range(rounds)]


def ladder(*requests: str) -> dict[str, float]:
    """Time requests of the one volume, on a channel that is warm."""
    client = Client()
    client.greet()
    connect = pb.ConnectVolumeRequest(server="give", volume=LADDER)
    stage = pb.StageVolumeRequest(name=NAME, fs_type="ext4")
    mount = pb.MountVolumeRequest(name=NAME, path=PATH)
    unmount = pb.UnmountVolumeRequest(name=NAME, path=PATH)
    unstage = pb.UnstageVolumeRequest(name=NAME)
    disconnect = pb.DisconnectVolumeRequest(name=NAME)
    steps: dict[str, Callable[[], None]] = {
        "create": lambda: client.create(LADDER),
        "publish": lambda: client.publish(LADDER),
        "connect": lambda: client.send("ConnectVolume", connect),
        "stage": lambda: client.send("StageVolume", stage),
        "mount": lambda: client.send("MountVolume", mount),
        "unmount": lambda: client.send("UnmountVolume", unmount),
        "unstage": lambda: client.send("UnstageVolume", unstage),
        "disconnect": lambda: client.send("DisconnectVolume", disconnect),
        "unpublish": lambda: client.unpublish(LADDER),
        "delete": lambda: client.delete(LADDER),
    }
    return {request: timed(steps[request]) for request in requests}


def fill(count: int) -> float:
    """Make volumes that are exported, a few at once; return how long it took."""
    client = Client()

    def make(volume: str) -> None:
        client.create(volume, SMALL)
        client.publish(volume)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return timed(lambda: list(threads.map(make, (f"v{n:03}" for n in range(count)))))


def exported(count: int) -> float:
    """Wait until so many targets are enabled with a LUN for their host; return the uptime."""
    while _enabled() < count or len(_links("acls/*/lun_0/*")) < count:
        time.sleep(LOOK_S)  # configfs tells nobody
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _enabled() -> int:
    return sum(path.read_text() == "1\n" for path in TARGET.glob(f"{GROUP}/enable"))


def _links(below: str) -> list[Path]:
    return [path for path in TARGET.glob(f"{GROUP}/{below}") if path.is_symlink()]


def clear() -> str:
    """Take all exports away, whoever made them, without any tool."""
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
    """Do what the command line says."""
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
            return timed(lambda: Client().greet())
    return ladder(*words)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

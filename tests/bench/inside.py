"""Client that runs inside a machine, calls its zfsilod, and prints times as JSON.

inside.py changes VOLUME ROUNDS            grow, publish and unpublish one volume
inside.py throughput CLIENTS CALLS         many clients with a volume each, CALLS changes in total
inside.py first                            the first answer over a new channel
inside.py lifecycle TRANSPORT REQUEST...   requests for one volume, one after the other
inside.py fill COUNT TRANSPORT             create and publish so many volumes
inside.py copy COUNT                       make so many of one, without the daemon
inside.py connect COUNT                    connect to them
inside.py disconnect COUNT                 disconnect from them
inside.py empty COUNT                      unpublish and delete them
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
STATE = "/var/lib/zfsilo"
DEADLINE_S = 300
GIB, SMALL, STEP = 1 << 30, 16 << 20, 1 << 20
HOST, SERVER = "take", "give"
PATH = "/srv/bench"
AT_ONCE = 32  # they share units
TRIES = 4  # of a call, before the last one
CLIENT_AT_ONCE = 4  # each has a unit of its own
SIZES = ("volsize", "refreservation")  # properties that zfs create sets by its options
TRANSPORTS = {"iscsi": pb.TRANSPORT_ISCSI, "nvme": pb.TRANSPORT_NVME}


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

    def create(self, volume: str, capacity_bytes: int = GIB, transport: str = "iscsi") -> None:
        """Create a volume that may be published."""
        volume_message = pb.Volume(
            capacity_bytes=capacity_bytes,
            thin=True,
            mode=pb.MODE_FILESYSTEM,
            hosts=[HOST],
            transport=TRANSPORTS[transport],
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


def lifecycle(transport: str, *requests: str) -> dict[str, float]:
    """Return the times of requests for the one volume of a transport, on a warm channel."""
    client = BenchClient()
    client.greet()
    volume = f"bench-{transport}"
    name = f"volumes/{volume}"
    connect = pb.ConnectVolumeRequest(server=SERVER, volume=volume)
    stage = pb.StageVolumeRequest(name=name, fs_type="ext4")
    mount = pb.MountVolumeRequest(name=name, path=PATH)
    unmount = pb.UnmountVolumeRequest(name=name, path=PATH)
    unstage = pb.UnstageVolumeRequest(name=name)
    disconnect = pb.DisconnectVolumeRequest(name=name)
    attach = pb.AttachVolumeRequest(server=SERVER, volume=volume, path=PATH, fs_type="ext4")
    detach = pb.DetachVolumeRequest(name=name)
    steps: dict[str, Callable[[], None]] = {
        "create": lambda: client.create(volume, transport=transport),
        "publish": lambda: client.publish(volume),
        "connect": lambda: client.send("ConnectVolume", connect),
        "stage": lambda: client.send("StageVolume", stage),
        "mount": lambda: client.send("MountVolume", mount),
        "unmount": lambda: client.send("UnmountVolume", unmount),
        "unstage": lambda: client.send("UnstageVolume", unstage),
        "disconnect": lambda: client.send("DisconnectVolume", disconnect),
        "attach": lambda: client.send("AttachVolume", attach),
        "detach": lambda: client.send("DetachVolume", detach),
        "unpublish": lambda: client.unpublish(volume),
        "delete": lambda: client.delete(volume),
    }
    return {request: timed(steps[request]) for request in requests}


# Many volumes


def volumes(count: int) -> list[str]:
    """Return the names of so many volumes."""
    return [f"v{number:03}" for number in range(count)]


class PatientClient(BenchClient):
    """A client that repeats a call which the host was too slow for, as kubelet does."""

    def send(self, method: str, request: Any) -> None:
        for _try in range(TRIES):
            try:
                super().send(method, request)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                return
        super().send(method, request)


def at_once(work: Callable[[BenchClient, str], object], count: int, clients: int) -> float:
    """Do something for each volume, for so many at the same time; return the seconds."""
    client = PatientClient()
    with ThreadPoolExecutor(clients) as threads:
        return timed(lambda: list(threads.map(partial(work, client), volumes(count))))


def fill(count: int, transport: str) -> float:
    """Create and publish volumes."""

    def make(client: BenchClient, volume: str) -> None:
        client.create(volume, SMALL, transport)
        client.publish(volume)

    return at_once(make, count, AT_ONCE)


def connect_all(count: int) -> float:
    """Connect to volumes of the server."""

    def connect(client: BenchClient, volume: str) -> None:
        client.send("ConnectVolume", pb.ConnectVolumeRequest(server=SERVER, volume=volume))

    return at_once(connect, count, CLIENT_AT_ONCE)


def disconnect_all(count: int) -> float:
    """Disconnect from volumes."""

    def disconnect(client: BenchClient, volume: str) -> None:
        request = pb.DisconnectVolumeRequest(name=f"volumes/{volume}")
        client.send("DisconnectVolume", request)

    return at_once(disconnect, count, CLIENT_AT_ONCE)


def empty(count: int) -> float:
    """Unpublish and delete volumes."""

    def remove(client: BenchClient, volume: str) -> None:
        client.unpublish(volume)
        client.delete(volume)

    return at_once(remove, count, AT_ONCE)


def copy(count: int) -> float:
    """Make volumes like the first one, with its records and marks, while no daemon runs.

    To create and publish 100 volumes by requests takes five minutes of an emulated machine.
    """
    from zfsilod.model.records import Publication, Volume
    from zfsilod.storage.store import Store

    first, *others = volumes(count)
    store = Store(STATE)
    with store.read() as txn:
        volume, publication = txn.get(Volume, first), txn.get(Publication, f"{first}/{HOST}")
    assert volume is not None
    assert publication is not None
    marks = zfs("get", "-H", "-s", "local", "-o", "property,value", "all", volume.dataset)
    settings = dict(line.split("\t") for line in marks.splitlines())
    settings = {key: value for key, value in settings.items() if key not in SIZES}
    chap = store.chap(publication.secret)

    def make(number: int, name: str) -> None:
        uid = f"{number:032x}"
        dataset = volume.dataset.replace(first, name)
        own = {key: value.replace(volume.uid, uid) for key, value in settings.items()}
        own["volblocksize"] = str(volume.volblocksize)
        options = [word for key, value in own.items() for word in ("-o", f"{key}={value}")]
        zfs("create", "-s", "-V", str(volume.capacity_bytes), *options, dataset)
        guid = zfs("get", "-H", "-o", "value", "guid", dataset).strip()
        names = {
            field: getattr(volume, field).replace(volume.uid, uid)
            for field in ("target", "backstore")
        }
        published = publication.but(id=f"{name}/{HOST}", volume=name)
        with store.write() as txn:
            txn.put(volume.but(id=name, uid=uid, dataset=dataset, guid=guid, **names))
            txn.put(published)
            txn.put_raw("secret", published.secret, store.seal(published.secret, chap))

    def make_all() -> None:
        for number, name in enumerate(others, 1):
            make(number, name)

    return timed(make_all)


def zfs(*words: str) -> str:
    """Run zfs and return its output."""
    return subprocess.run(("zfs", *words), check=True, capture_output=True, text=True).stdout


def main(mode: str, *words: str) -> object:
    """Run one mode of the command line."""
    match mode:
        case "changes":
            return changes(words[0], int(words[1]))
        case "throughput":
            return throughput(int(words[0]), int(words[1]))
        case "first":
            return timed(lambda: BenchClient().greet())
        case "lifecycle":
            return lifecycle(*words)
        case "fill":
            return fill(int(words[0]), words[1])
    many: dict[str, Callable[[int], float]] = {
        "copy": copy,
        "connect": connect_all,
        "disconnect": disconnect_all,
        "empty": empty,
    }
    return many[mode](int(words[0]))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

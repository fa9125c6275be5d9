"""Floods that leave records: callers of low roles that fill the store, and a store that is full."""

from __future__ import annotations

from tests.siege.flood import JOIN, Flood

REMOTE = ("-H", JOIN, "info")
LIBRARY = """
import pathlib
sys.path.insert(0, "/usr/lib/zfsilo")
import grpc
from zfsilo.v1 import host_pb2, operation_pb2, service_pb2, volume_pb2
from zfsilod.security.join_file import parse_join
from zfsilod.wire.channel import credentials, options
from zfsilod.wire.stub import Api

def api(name):
    access = parse_join(pathlib.Path("/run/%s.join" % name).read_text())
    return Api(grpc.secure_channel(access.address, credentials(access), options=options(access)))

def forever(ask, at_once=16):
    ready()
    number = 0
    while True:
        calls = []
        for _call in range(at_once):
            number += 1
            method, request = ask(number)
            calls.append(method.future(request, timeout=20))
        for call in calls:
            call.exception()
"""
REGISTRATIONS = """
host = api("siege")

def register(number):
    labels = {"l%d" % part: "x" * 250 for part in range(30)} | {"n": str(number)}
    new = host_pb2.Host(iqn="iqn.2024-01.lab.siege:h", labels=labels)
    return host.hosts.RegisterHost, host_pb2.RegisterHostRequest(host=new)

forever(register)
"""
RENEWALS = """
from zfsilod.security import certificates
reader = api("reader")
request = service_pb2.RenewCertificateRequest(
    request=certificates.make_request().certificate_pem.decode()
)
forever(lambda _number: (reader.service.RenewCertificate, request))
"""
OPERATIONS = """
controller = api("controller")

def change(number):
    labels = {"l%d" % part: "x" * 250 for part in range(30)} | {"n": str(number)}
    request = volume_pb2.UpdateVolumeRequest(volume=volume_pb2.Volume(
        name="volumes/data", labels=labels))
    request.update_mask.paths.append("labels")
    return controller.volumes.UpdateVolume, request

forever(change)
"""
# A plan reads all that a change reads, and stores nothing.
PLANS = """
controller = api("controller")

def plan(number):
    volume = volume_pb2.Volume(capacity_bytes=1 << 30, labels={"l": "x" * 250})
    request = volume_pb2.CreateVolumeRequest(
        volume_id="plan%d" % number, volume=volume, validate_only=True)
    return controller.volumes.CreateVolume, request

forever(plan, at_once=64)
"""
REFUSALS = """
reader = api("reader")
request = volume_pb2.DeleteVolumeRequest(name="volumes/data")
forever(lambda _number: (reader.volumes.DeleteVolume, request), at_once=64)
"""
FULL_STORE = """
from zfsilod.storage.store import Store
store = Store(pathlib.Path("/var/lib/zfsilo"))
number, told = 0, False
while number < 20_000:
    if store.used() >= 0.93:
        if not told:
            ready()
        told = True
        time.sleep(0.02)  # operations that have ended make space: it is filled again
        continue
    with store.write() as txn:
        for _record in range(64):
            txn.put_raw("siege", str(number), bytes(16000))
            number += 1
"""
EMPTIED = """
from zfsilod.storage.store import Store
store = Store(pathlib.Path("/var/lib/zfsilo"))
number = 0
while True:
    with store.write() as txn:
        if txn.get_raw("siege", str(number)) is None:
            break
        for _record in range(64):
            txn.drop_raw("siege", str(number))
            number += 1
store.close()
"""

FLOODS = [
    Flood("registrations with large labels", LIBRARY + REGISTRATIONS, during=(REMOTE,)),
    Flood("renewals of a certificate", LIBRARY + RENEWALS, during=(REMOTE,)),
    Flood("operations of a controller", LIBRARY + OPERATIONS, during=(REMOTE,)),
    Flood("plans of a controller", LIBRARY + PLANS, during=(REMOTE,)),
    Flood("refused changes, of a reader", LIBRARY + REFUSALS, during=(REMOTE,)),
    Flood(
        "a full store",
        LIBRARY + FULL_STORE,
        uid=0,
        before=(
            ("volume", "create", "full", "1G"),
            ("volume", "publish", "full", "take"),
            ("volume", "create", "idle", "1G"),
        ),
        during=(
            REMOTE,
            ("volume", "list"),
            ("volume", "show", "full"),
            ("volume", "unpublish", "full", "take", "--fence"),
            ("volume", "delete", "full", "--yes"),
            ("volume", "delete", "idle", "--yes"),
        ),
        refused=(
            ("volume", "create", "more", "1G"),
            ("-H", JOIN, "volume", "create", "more", "1G"),
        ),
        after=LIBRARY + EMPTIED,
    ),
]

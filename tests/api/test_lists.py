"""Pages and filters, alone and over the wire."""

from __future__ import annotations

import base64
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zfsilo.v1 import host_pb2, operation_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import create, front_of, publish, refused
from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc import pages
from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front
    from zfsilod.storage.transaction import Transaction

THINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "db": {
        "id": ("db",),
        "state": ("PUBLISHED",),
        "host": ("a", "b"),
        "labels": ("app", "x y"),
        "labels.app": ("db",),
    },
    "web": {"id": ("web",), "state": ("CREATED",), "labels": ("app",), "labels.app": ("w 1",)},
    "pre-1": {"id": ("pre-1",), "state": ("MOUNTED",)},
}


def matching(text: str) -> list[str]:
    words = {"state": ("CREATED", "PUBLISHED", "MOUNTED")}
    predicate = filters.parse(text, ("id", "state", "host", "labels"), words)
    return [name for name, values in THINGS.items() if predicate(lambda f, v=values: v.get(f, ()))]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["db", "web", "pre-1"]),
        ("  ", ["db", "web", "pre-1"]),
        ("state = PUBLISHED", ["db"]),
        ("state=PUBLISHED", ["db"]),
        ("state != PUBLISHED", ["web", "pre-1"]),
        ("state = published", ["db"]),
        ("state != Published", ["web", "pre-1"]),
        ("state : pub", ["db"]),
        ('labels.app = "DB"', []),
        ('labels.app = "db"', ["db"]),
        ('labels.app = "w 1"', ["web"]),
        ('labels.app : "w"', ["web"]),
        ("labels : app", ["db", "web"]),
        ('labels : "x y"', ["db"]),
        ("NOT labels : app", ["pre-1"]),
        ("host = b", ["db"]),
        ("host != b", ["web", "pre-1"]),
        ('id : "pre"', ["pre-1"]),
        ("id = pre-1", ["pre-1"]),
        ("id = db OR id = web", ["db", "web"]),
        ("labels : app AND id = db OR id = pre-1", ["db"]),  # OR binds more closely
        ("(labels : app AND id = db) OR id = pre-1", ["db", "pre-1"]),
        ("NOT (id = db OR id = web)", ["pre-1"]),
        ("NOT NOT id = db", ["db"]),
        ("((((id = db))))", ["db"]),
        (r'id = "d\"b"', []),
    ],
)
def test_filters(text: str, expected: list[str]) -> None:
    assert matching(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "id",
        "id =",
        "= db",
        "id = db AND",
        "AND id = db",
        "id = db id = web",
        "(id = db",
        "id = db)",
        "()",
        "NOT",
        "size = 3",
        "label.app = db",
        'id = "db',
        "id = db;",
        "id ~ db",
        "id < db",
        "id == db",
        "labels",
        '"id" = db',
        "id = db or id = web",
        "id = (db)",
        "state = BOGUS",
        "state != BOGUS",
        "state : BOGUS",
        'state = ""',
        "state = PUBLISHED_",
        "(" * 20 + "id = db" + ")" * 20,
        "NOT " * 20 + "id = db",
        "id = " + "x" * 3000,
    ],
)
def test_invalid_filters(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        matching(text)
    assert raised.value.reason == "BAD_FILTER"
    assert len(raised.value.message) < 300


@given(st.text(alphabet='id=ANDORT()": !\\x', max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    with suppress(InvalidArgument):
        matching(text)


async def many(front: Front, count: int) -> list[str]:
    """Put volumes into the store, without a host behind them, and return their ids."""
    from zfsilod.model.records import Volume

    def put(txn: Any) -> None:
        for number in range(count):
            txn.put(
                Volume(
                    id=f"v{number:05}",
                    uid=f"{number:032x}",
                    dataset=f"tank/zfsilo/v{number:05}",
                    capacity_bytes=1 << 30,
                    thin=True,
                    mode="FILESYSTEM",
                    volblocksize=16384,
                    labels=(("odd", str(number % 2)),),
                    state="CREATED",
                )
            )

    front.write(put)
    return [f"v{number:05}" for number in range(count)]


async def all_pages(method: Any, request: Any, field: str) -> list[list[str]]:
    listing = []
    while True:
        answer = await method(request)
        listing.append([item.name for item in getattr(answer, field)])
        if not answer.next_page_token:
            return listing
        request.page_token = answer.next_page_token


def flat(listing: list[list[str]]) -> list[str]:
    return list(chain.from_iterable(listing))


async def test_pages_are_complete_and_in_order(front: Front) -> None:
    ids = await many(front, 250)
    volumes = front.root().volumes
    listing = await all_pages(volumes.ListVolumes, pb.ListVolumesRequest(), "volumes")
    assert [len(page) for page in listing] == [100, 100, 50]
    assert flat(listing) == [f"volumes/{volume_id}" for volume_id in ids]
    request = pb.ListVolumesRequest(page_size=7, filter='labels.odd = "1"', order_by="id")
    listing = await all_pages(volumes.ListVolumes, request, "volumes")
    assert flat(listing) == [f"volumes/{volume_id}" for volume_id in ids[1::2]]
    assert {len(page) for page in listing[:-1]} == {7}
    assert len((await volumes.ListVolumes(pb.ListVolumesRequest(page_size=5000))).volumes) == 250


def drop_volume(name: str, txn: Transaction) -> None:
    txn.drop("volume", name)


async def test_changes_between_pages_do_not_move_other_results(front: Front) -> None:
    ids = await many(front, 10)
    volumes = front.root().volumes
    first = await volumes.ListVolumes(pb.ListVolumesRequest(page_size=5))
    for volume_id in (ids[0], ids[4], ids[5]):
        front.write(partial(drop_volume, volume_id))
    rest = await volumes.ListVolumes(pb.ListVolumesRequest(page_token=first.next_page_token))
    assert [volume.id for volume in rest.volumes] == ids[6:]


async def test_a_filter_that_matches_little_returns_short_pages(
    front: Front, monkeypatch: Any
) -> None:
    monkeypatch.setattr(pages, "MAX_SCANNED", 40)
    await many(front, 100)
    request = pb.ListVolumesRequest(filter="id = v00099")
    listing = await all_pages(front.root().volumes.ListVolumes, request, "volumes")
    assert listing == [[], [], ["volumes/v00099"]]


async def test_a_page_fits_into_a_message(front: Front, monkeypatch: Any) -> None:
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 1000)
    ids = await many(front, 30)
    listing = await all_pages(front.root().volumes.ListVolumes, pb.ListVolumesRequest(), "volumes")
    assert len(listing) > 2
    assert flat(listing) == [f"volumes/{volume_id}" for volume_id in ids]


async def test_a_token_is_valid_after_a_restart(tmp_path: Path) -> None:
    async with front_of(tmp_path) as front:
        ids = await many(front, 10)
        first = await front.root().volumes.ListVolumes(pb.ListVolumesRequest(page_size=5))
    async with front_of(tmp_path) as front:
        request = pb.ListVolumesRequest(page_token=first.next_page_token)
        rest = await front.root().volumes.ListVolumes(request)
    assert [volume.id for volume in rest.volumes] == ids[5:]


async def test_invalid_requests_for_pages(front: Front) -> None:
    await many(front, 10)
    api = front.root()
    token = (await api.volumes.ListVolumes(pb.ListVolumesRequest(page_size=5))).next_page_token
    forged = base64.urlsafe_b64encode(b"\0" * 24 + b"v00001").decode().rstrip("=")
    for wrong in ("x", "!", forged, token[:-2], token + "AAAA", "a" * 5, "\u00e4"):
        with refused("INVALID_ARGUMENT", "BAD_PAGE_TOKEN"):
            await api.volumes.ListVolumes(pb.ListVolumesRequest(page_token=wrong))
    for other in (
        pb.ListVolumesRequest(page_token=token, filter="id : v"),
        pb.ListVolumesRequest(page_token=token, order_by="id"),
    ):
        with refused("INVALID_ARGUMENT", "BAD_PAGE_TOKEN"):
            await api.volumes.ListVolumes(other)
    with refused("INVALID_ARGUMENT", "BAD_PAGE_TOKEN"):
        await api.hosts.ListHosts(host_pb2.ListHostsRequest(page_token=token))
    with refused("INVALID_ARGUMENT", "BAD_PAGE_SIZE"):
        await api.volumes.ListVolumes(pb.ListVolumesRequest(page_size=-1))
    for order in ("name", "id desc", "id,uid"):
        with refused("INVALID_ARGUMENT", "BAD_ORDER"):
            await api.volumes.ListVolumes(pb.ListVolumesRequest(order_by=order))
    with refused("INVALID_ARGUMENT", "BAD_FILTER"):
        await api.volumes.ListVolumes(pb.ListVolumesRequest(filter="colour = red"))
    for text in ("state = BOGUS", "mode = file"):
        with refused("INVALID_ARGUMENT", "BAD_FILTER"):
            await api.volumes.ListVolumes(pb.ListVolumesRequest(filter=text))
    with refused("INVALID_ARGUMENT", "BAD_FILTER"):
        await api.operations.ListOperations(
            operation_pb2.ListOperationsRequest(filter="state = READY")
        )


async def test_filters_of_volumes_hosts_and_operations(front: Front) -> None:
    api = front.root()
    await api.volumes.CreateVolume(create(labels={"app": "db"}))
    await api.volumes.CreateVolume(create("block", mode=pb.MODE_BLOCK))
    await api.volumes.PublishVolume(publish())
    await api.volumes.ConnectVolume(
        pb.ConnectVolumeRequest(server="give", volume="data", local_name="here")
    )
    for text, expected in {
        "state = PUBLISHED": ["data"],
        "state = CONNECTED OR mode = BLOCK": ["block", "here"],
        "mode = filesystem": ["data", "here"],
        "host = take": ["data"],
        "server = give": ["here"],
        'labels.app = "db"': ["data"],
        "uid != x AND id : da": ["data"],
    }.items():
        page = await api.volumes.ListVolumes(pb.ListVolumesRequest(filter=text))
        assert [volume.id for volume in page.volumes] == expected, text
    hosts = await api.hosts.ListHosts(host_pb2.ListHostsRequest(filter="iqn : iqn. AND id = take"))
    assert [host.id for host in hosts.hosts] == ["take"]
    request = operation_pb2.ListOperationsRequest(filter="kind = connect AND state = done")
    (one,) = (await api.operations.ListOperations(request)).operations
    assert one.subject == "volumes/here"
    request = operation_pb2.ListOperationsRequest(page_size=2)
    listing = await all_pages(api.operations.ListOperations, request, "operations")
    assert flat(listing) == sorted(flat(listing))


async def test_publications_by_volume_and_host_in_pages(front: Front) -> None:
    from zfsilod.model.records import Publication

    await many(front, 3)
    keys = [(f"v{v:05}", f"h{h}") for v in range(3) for h in range(4)]

    def put(txn: Any) -> None:
        for volume, host in keys:
            txn.put(Publication(id=f"{volume}/{host}", volume=volume, host=host, initiator="iqn.x"))

    front.write(put)
    volumes = front.root().volumes

    async def listed(**asked: Any) -> list[tuple[str, str]]:
        listing: list[tuple[str, str]] = []
        request = pb.ListPublicationsRequest(page_size=3, **asked)
        while True:
            answer = await volumes.ListPublications(request)
            listing += [(e.volume[8:], e.host[6:]) for e in answer.publications]
            if not answer.next_page_token:
                return listing
            request.page_token = answer.next_page_token

    assert await listed() == keys
    assert await listed(volume="volumes/v00001") == [key for key in keys if key[0] == "v00001"]
    assert await listed(host="hosts/h2") == [key for key in keys if key[1] == "h2"]
    assert await listed(volume="volumes/v00002", host="hosts/h3") == [("v00002", "h3")]

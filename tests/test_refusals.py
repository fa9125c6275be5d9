"""Refusals: bad input gets one sentence, with a reason, and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.test_service import CONNECT, CREATE, GIB, PUBLISH, UP, raw_keys
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ZfsiloError,
)
from zfsilod.requests.attach import Grow, MountAt, Stage
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect, Unstage
from zfsilod.requests.hosts import CreateHost, DeleteHost
from zfsilod.requests.publications import Unpublish
from zfsilod.requests.volumes import UpdateVolume

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.requests.request import Request

WRONG: list[tuple[tuple[Request[Any], ...], Request[Any], type[ZfsiloError], str]] = [
    ((), CREATE.but(id="Data"), InvalidArgument, "invalid volume id 'Data'"),
    ((), CREATE.but(id=""), InvalidArgument, "invalid volume id ''"),
    ((), CREATE.but(id="data\n"), InvalidArgument, "invalid volume id"),
    ((), CREATE.but(id="-x"), InvalidArgument, "invalid volume id"),
    ((), CREATE.but(id="a" * 129), InvalidArgument, "invalid volume id"),
    ((), CREATE.but(id="srv.mount"), InvalidArgument, "ends like a systemd unit"),
    ((), CREATE.but(capacity_bytes=0), InvalidArgument, "invalid size 0 B"),
    ((), CREATE.but(capacity_bytes=-1), InvalidArgument, "invalid size -1 B"),
    ((), CREATE.but(thin=False, capacity_bytes=2 << 40), ResourceExhausted, "free"),
    ((), CREATE.but(capacity_bytes=3 << 40), ResourceExhausted, "overcommit"),
    (
        (),
        CREATE.but(limit_bytes=GIB - 1),
        InvalidArgument,
        "exceeds the limit of 1.0 GiB (1073741823 bytes)",
    ),
    ((), CREATE.but(properties=(("mountpoint", "-x"),)), InvalidArgument, "mountpoint"),
    ((), CREATE.but(properties=(("volsize", "1"),)), InvalidArgument, "volsize"),
    ((), CREATE.but(properties=(("volblocksize", "1000"),)), InvalidArgument, "volblocksize"),
    ((), CREATE.but(labels=(("-", "x"),)), InvalidArgument, "label"),
    ((CREATE,), CREATE.but(capacity_bytes=2 * GIB), AlreadyExists, "another capacity_bytes"),
    ((), DeleteVolume(id="data"), NotFound, "no volume data"),
    ((CREATE, PUBLISH), DeleteVolume(id="data"), FailedPrecondition, "published to take"),
    ((CREATE,), DeleteVolume(id="data", etag="1"), Busy, "read it again"),
    (
        (CREATE,),
        UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=GIB // 2),
        InvalidArgument,
        "data cannot shrink: its size is 1.0 GiB (1073741824 bytes)",
    ),
    ((CREATE,), UpdateVolume(id="data", mask=("uid",)), InvalidArgument, "invalid update mask uid"),
    ((), PUBLISH, NotFound, "no volume data"),
    ((CREATE,), PUBLISH.but(host="other"), NotFound, "unknown host other"),
    ((CREATE, PUBLISH), PUBLISH.but(readonly=True), AlreadyExists, "R, read-only: unpublish"),
    ((CREATE,), PUBLISH.but(access_mode="MULTI_NODE_MULTI_WRITER"), InvalidArgument, "not allow"),
    (
        (CREATE, PUBLISH, CreateHost(id="other", iqn="iqn.2024-01.lab.other:host")),
        PUBLISH.but(host="other"),
        FailedPrecondition,
        "published to take",
    ),
    ((CREATE, CreateHost(id="bare")), PUBLISH.but(host="bare"), FailedPrecondition, "no IQN"),
    ((CREATE, PUBLISH, CONNECT), Unpublish(volume="data"), FailedPrecondition, "still logged in"),
    ((CREATE,), CONNECT, FailedPrecondition, "not published"),
    ((CREATE, PUBLISH), CONNECT.but(epoch=7), FailedPrecondition, "epoch 7"),
    (
        (CREATE, PUBLISH, CONNECT),
        CONNECT.but(id="again"),
        AlreadyExists,
        "already connected as data",
    ),
    ((), Stage(id="data"), FailedPrecondition, "not connected"),
    (UP[:3], Stage(id="data", fs_type="ntfs"), InvalidArgument, "use ext4 or xfs"),
    (UP[:3], Stage(id="data", readonly=True), FailedPrecondition, "no filesystem yet"),
    (UP[:3], Stage(id="data", path="srv"), InvalidArgument, "use an absolute path"),
    (UP[:3], Stage(id="data", path="/srv/../etc"), InvalidArgument, "without .."),
    (UP[:3], Stage(id="data", path="/"), InvalidArgument, "invalid mount path"),
    (UP[:3], Stage(id="data", mount_options=("suid,exec",)), InvalidArgument, "mount option"),
    (UP[:4], Stage(id="data", path="/elsewhere"), FailedPrecondition, "other parameters"),
    (UP[:3], MountAt(id="data", path="/srv/data"), FailedPrecondition, "stage it first"),
    (UP, MountAt(id="data", path="/srv/data", readonly=True), AlreadyExists, "other parameters"),
    (UP, Unstage(id="data"), FailedPrecondition, "mounted at /srv/data"),
    (UP, Disconnect(id="data"), FailedPrecondition, "unmount and unstage"),
    ((), Grow(id="data"), FailedPrecondition, "not connected"),
    ((), CreateHost(id="take", iqn="iqn.2024-01.lab.else:x"), AlreadyExists, "another iqn"),
    ((), CreateHost(id="clone", iqn="iqn.2024-01.lab.take:host"), AlreadyExists, "host take"),
    ((), CreateHost(id="bad", iqn="iqn/../x"), InvalidArgument, "not an IQN"),
    ((CREATE, PUBLISH), DeleteHost(id="take"), FailedPrecondition, "published to take: data"),
]


@pytest.mark.parametrize(("before", "wrong", "error", "words"), WRONG)
async def test_bad_input_gets_one_sentence_and_changes_nothing(
    fixture: ServiceFixture,
    before: tuple[Request[Any], ...],
    wrong: Request[Any],
    error: type[ZfsiloError],
    words: str,
) -> None:
    if before:
        await fixture.do(*before)
    facts, claims = fixture.facts, raw_keys(fixture, "claim")
    with pytest.raises(error) as caught:
        await fixture.do(wrong)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.reason
    assert fixture.facts == facts
    assert raw_keys(fixture, "claim") == claims == []

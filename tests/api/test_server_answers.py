"""Answers of a server that lies: refused, and nothing of them is quoted that is a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import create, publish
from zfsilod.model.errors import FailedPrecondition
from zfsilod.wire.server_answers import check_chap, check_connection, check_replica
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    from tests.api.running import Front

UID = "0123456789abcdef0123456789abcdef"
PREFIX = "iqn.2026-01.org.zfsilo:give"
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"


def answer(**changes: Any) -> pb.FetchConnectionResponse:
    honest: dict[str, Any] = {
        "target": f"{PREFIX}:{UID}",
        "serial": UID,
        "portals": ["10.0.0.1:3260"],
        "size_bytes": 1 << 30,
        "mode": pb.MODE_FILESYSTEM,
        "epoch": 1,
        "filesystem": pb.Filesystem(state=pb.FILESYSTEM_STATE_NONE),
    }
    return pb.FetchConnectionResponse(**(honest | changes))


@pytest.mark.parametrize(
    "portal",
    ["10.0.0.1:3260", "0.0.0.0:3260", "[fd00::1]:3260", "[fe80::1%eth0]:3260", "[::]:1"],
)
def test_an_honest_answer(portal: str) -> None:
    for prefix in ("", PREFIX):
        connection = check_connection("give", "data", answer(portals=[portal]), prefix)
        assert (connection.target, connection.portals) == (f"{PREFIX}:{UID}", (portal,))


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "iqn.2001-05.com.vendor:disk7"},
        {"target": f"{PREFIX}:{'f' * 32}"},
        {"target": f"iqn.2026-01.org.zfsilo:archive:{UID}"},
        {"target": f"{PREFIX}-more:{UID}"},
        {"target": f"{PREFIX}:x:{UID}"},
        {"target": f"--op=delete:{UID}"},
        {"target": f"iqn.2026-01.org.zfsilo:../../{UID}:{UID}"},
        {"target": f"iqn.{'a' * 300}:{UID}"},
        {"target": f"{PREFIX}:{UID}\n"},
        {"target": "", "serial": ""},
        {"serial": ""},
        {"serial": UID.upper(), "target": f"{PREFIX}:{UID.upper()}"},
        {"portals": []},
        {"portals": [f"10.0.0.{number}:3260" for number in range(17)]},
        {"portals": ["server.example:3260"]},
        {"portals": ["10.0.0.1"]},
        {"portals": ["10.0.0.1:3260,1 -o delete"]},
        {"portals": ["10.0.0.1:3260", ""]},
        {"portals": ["[fe80::1%../../etc]:3260"]},
        {"size_bytes": 0},
        {"size_bytes": -1},
        {"size_bytes": 1 << 62},
        {"epoch": 0},
        {"epoch": -5},
        {"epoch": (1 << 63) - 1},
        {"rotation": -1},
        {"mode": 0},
        {"mode": 99},
        {"filesystem": pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, type="btrfs")},
        {"filesystem": pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, type="ext4", uuid="-f")},
        {"filesystem": pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, origin="x" * 4096)},
        {"filesystem": pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, host="\n")},
        {"filesystem": pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, operation="x" * 65)},
        {"filesystem": pb.Filesystem(state=99)},  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_lie_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        check_connection("give", "data", answer(**changes), PREFIX)
    assert refused.value.reason == "BAD_ANSWER"
    assert len(refused.value.message) < 600


@pytest.mark.parametrize("bad", ["", "a b", "x\n", "é", "s" * 256])
@pytest.mark.parametrize("field", ["username", "password", "mutual_username", "mutual_password"])
def test_secrets_that_would_add_lines_are_refused_and_not_quoted(field: str, bad: str) -> None:
    fields = dict.fromkeys(
        ("username", "password", "mutual_username", "mutual_password"), "a-good-secret"
    )
    with pytest.raises(FailedPrecondition) as refused:
        check_chap("give", "data", pb.Chap(**(fields | {field: bad})), tls=False)
    assert "a-good-secret" not in refused.value.message
    assert not bad or bad not in refused.value.message or bad == "a b"


@pytest.mark.parametrize(("key", "tls"), [("", True), ("a-good-secret", False), ("a b", True)])
def test_a_key_of_tls_is_there_with_tls_only(key: str, tls: bool) -> None:
    """A server that forgets it does not make a client connect without TLS."""
    names = ("username", "password", "mutual_username", "mutual_password")
    fields = dict.fromkeys(names, "a-good-secret")
    with pytest.raises(FailedPrecondition) as refused:
        check_chap("give", "data", pb.Chap(**fields, tls_key=key), tls=tls)
    assert "a-good-secret" not in refused.value.message
    assert check_chap("give", "data", pb.Chap(**fields, tls_key="key"), tls=True).has_tls


async def test_a_server_must_use_its_prefix(front: Front) -> None:
    """The join file has the prefix of the server."""
    await front.root().volumes.CreateVolume(create())
    await front.root().volumes.PublishVolume(publish())
    for prefix, served in (("", True), (PREFIX, True), ("iqn.2026-01.org.zfsilo:archive", False)):
        access = front.certified("host", "take")
        access.iqn_prefix = prefix
        servers = StorageServers({"give": access}.get)
        if served:
            connection, _chap = await servers.fetch("give", "data")
            assert connection.target.startswith(f"{PREFIX}:")
        else:
            with pytest.raises(FailedPrecondition, match="does not have the prefix"):
                await servers.fetch("give", "data")
        await servers.close()


def test_what_an_honest_peer_has() -> None:
    told = pb.Replica(snapshot_guid="17", continuation="1-e3267b170-f0-789c63")
    facts = check_replica("other", "data", told)
    assert (facts.exists, facts.guid, facts.token) == (True, "17", "1-e3267b170-f0-789c63")
    nothing = check_replica("other", "data", pb.Replica())
    assert (nothing.exists, nothing.guid, nothing.token) == (True, "", "")


@pytest.mark.parametrize(
    "told",
    [
        {"continuation": "1-e3267b170-f0-\0"},
        {"continuation": "1" * 200_000},
        {"continuation": "-nvP"},
        {"continuation": "1-e3267b170 -f0"},
        {"continuation": "tank/zfsilo/other@snapshot"},
        {"snapshot_guid": "0x17"},
        {"snapshot_guid": "17\0"},
        {"snapshot_guid": "0" * 20 + "1" + "9" * 100_000},
        {"snapshot_guid": str(1 << 64)},
    ],
)
def test_a_lie_about_a_replica_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        check_replica("other", "data", pb.Replica(**told))
    assert raised.value.reason == "BAD_ANSWER"
    assert len(raised.value.message) < 200

"""`zfsiloctl snapshot blocks` with a real daemon."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.ctl.shell import DEADLINE_S
from zfsilod.api.http import connection
from zfsilod.api.http.connection import HttpConnection
from zfsilod.ctl import messages as pb
from zfsilod.ctl.client import Server
from zfsilod.ctl.http import UnixChannel
from zfsilod.model.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ctl.shell import Daemon, Shell

BLOCK = 16384
MANY = 40_000  # ranges: more than all buffers between a daemon and its client hold


def write(ctl: Shell, blocks: dict[str, str], volume: str = "data") -> None:
    """Set the blocks of a volume that are in use."""
    facts = ctl.daemon.front.fixture.host.facts
    facts.effect(f"blocks:{facts.get(f'zvol:tank/zfsilo/{volume}')['uid']}", blocks)


def test_the_blocks_of_a_snapshot(ctl: Shell) -> None:
    ctl.ok("volume create data 1G")
    write(ctl, {"1": "a", "2": "b", "8": "c"})
    ctl.ok("snapshot create data one")
    write(ctl, {"1": "a", "2": "new"})
    ctl.ok("snapshot create data two")
    assert ctl.ok("snapshot blocks one") == (
        f"{BLOCK} {2 * BLOCK} data\n{8 * BLOCK} {BLOCK} data\n"
    )
    changed = [(2 * BLOCK, BLOCK, False), (8 * BLOCK, BLOCK, True)]
    listed = "".join(
        f"{offset} {length} {'zero' if zero else 'data'}\n" for offset, length, zero in changed
    )
    assert ctl.ok("snapshot blocks two --since one") == listed
    text = ctl.ok("snapshot blocks two --since one --json").replace("}\n{", "},{")
    first, second = json.loads(f"[{text}]")
    assert int(first["size_bytes"]) == int(second["size_bytes"]) == 1 << 30
    assert [shown(one) for one in second["ranges"]] == changed


@pytest.fixture
def snapshot(ctl: Shell) -> str:
    """The name of a snapshot with many ranges."""
    ctl.ok("volume create large 10G")
    write(ctl, {str(2 * number): "x" for number in range(MANY)}, "large")
    ctl.ok("snapshot create large many")
    return "snapshots/many"


def blocks_of(daemon: Daemon, name: str) -> Iterator[Any]:
    """Read the blocks of a snapshot."""
    server = Server(UnixChannel(str(daemon.front.path)), "give", DEADLINE_S)
    request = pb.ReadSnapshotBlocksRequest(name=name)
    return server.watch("ReadSnapshotBlocks", request, DEADLINE_S).responses()


@contextmanager
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Tell when the daemon closes a connection in the middle of a response."""
    closed = threading.Event()
    close = HttpConnection.close

    def closing(one: HttpConnection) -> None:
        close(one)
        if one.busy:
            closed.set()

    monkeypatch.setattr(HttpConnection, "close", closing)
    yield closed


def test_a_reader_that_waits_too_long_learns_that_the_list_is_cut_off(
    daemon: Daemon, snapshot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINE_S", 0.3)
    with stuck(monkeypatch) as closed:
        messages = blocks_of(daemon, snapshot)
        next(messages)
        assert closed.wait(DEADLINE_S)
    with pytest.raises(Unavailable, match="give closed the connection before the end"):
        list(messages)


def test_a_reader_may_wait(daemon: Daemon, snapshot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to take a line is not the one to take a response."""
    monkeypatch.setattr(connection, "WRITE_S", 0.1)
    messages = blocks_of(daemon, snapshot)
    next(messages)
    assert not threading.Event().wait(0.5)
    assert sum(len(message.ranges) for message in messages) == MANY


@pytest.mark.parametrize("remote", [False, True])
def test_a_command_fails_when_the_list_is_cut_off(
    ctl: Shell, snapshot: str, monkeypatch: pytest.MonkeyPatch, *, remote: bool
) -> None:
    options = f"-H {ctl.daemon.join_file('controller', 'backup')} " if remote else ""
    line, sent = HttpConnection.line, 0

    async def killed(one: HttpConnection, data: bytes) -> None:
        nonlocal sent
        sent += 1
        if sent > 10:
            one.close()
        await line(one, data)

    monkeypatch.setattr(HttpConnection, "line", killed)
    ran = ctl(f"{options}snapshot blocks {snapshot}")
    assert ran.code == 9
    assert ran.err.endswith("closed the connection before the end of its answer\n")
    assert 0 < len(ran.out.splitlines()) < MANY


def shown(one: dict[str, Any]) -> tuple[int, int, bool]:
    return int(one["offset"]), int(one["length"]), bool(one.get("zero"))


def test_what_is_refused(ctl: Shell) -> None:
    ctl.ok("volume create data 1G")
    ctl.ok("snapshot create data one")
    refused = ctl("snapshot blocks one --since one")
    assert refused.code != 0
    assert "not older" in refused.err
    assert refused.out == ""
    assert ctl("snapshot blocks none").code != 0

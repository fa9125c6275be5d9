"""The blocks of real snapshots, with a made-up zfs(8) that sends made streams."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import UID, ScriptedRunner
from tests.host.made_streams import TO_THE_END, MadeStream
from tests.host.test_snapshots import POOL, SET_UID, SNAP_A, ZVOL_A, A, absent, rows
from zfsilod.host import snapshot_blocks
from zfsilod.host.run import Runner
from zfsilod.host.snapshot_blocks import SendStreams
from zfsilod.host.snapshots import RealSnapshots
from zfsilod.host.zfs import RealZfs
from zfsilod.model.errors import (
    CommandFailed,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
    ZfsiloError,
)

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 16384
SIZE = 64 * BLOCK
BASE_UID = "d" * 32
SNAP_BASE = f"tank/a@zfsilo-{BASE_UID}"
GET = (
    "zfs get -Hp -o name,property,value,source "
    "zfsilo:cut,zfsilo:uid,zfsilo:operation,guid,defer_destroy,createtxg,volsize tank/a"
)


def full(blocks: int) -> MadeStream:
    """Return the full stream of a snapshot whose first blocks are in use."""
    stream = MadeStream().begin().object().free(blocks * BLOCK, TO_THE_END)
    for number in range(blocks):
        stream.write(number * BLOCK, BLOCK)
    return stream.end()


def delta() -> MadeStream:
    """Return a stream that writes block 1, and frees blocks 3, 6 and all from 8 on."""
    stream = MadeStream().begin().object().free(8 * BLOCK, TO_THE_END).write(BLOCK, BLOCK)
    return stream.free(3 * BLOCK, BLOCK).free(6 * BLOCK, BLOCK).end()


class Zfs:
    """A `zfs` that writes its arguments to a file, and sends the streams of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def script(self, text: str) -> None:
        """Set what it does; `$folder` is the folder of the streams."""
        path = self.folder / "zfs"
        log = f'folder={self.folder}; echo "$*" >> $folder/log'
        path.write_text(f"#!/bin/sh\n{log}\n{text}\n")
        path.chmod(0o755)

    def has(self, name: str, stream: MadeStream) -> None:
        (self.folder / name).write_bytes(stream.content)

    @property
    def commands(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def zfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zfs:
    monkeypatch.setenv("ZFSILO_TOOLS_PATH", f"{tmp_path}:/usr/bin:/bin")
    return Zfs(tmp_path)


def streams(rate: float = 1 << 30) -> SendStreams:
    return SendStreams(Runner(), rate)


def test_what_is_in_use(zfs: Zfs) -> None:
    zfs.script("cat $folder/one")
    zfs.has("one", full(5))
    ranges = streams().allocated("tank/a@one", start=BLOCK, size_bytes=SIZE)
    assert list(ranges) == [(BLOCK, 4 * BLOCK, False)]
    assert zfs.commands == ["send --raw -- tank/a@one"]


@pytest.mark.parametrize(
    ("base", "end"),
    [
        (7, [(6, 1, True)]),
        (4, []),  # what is freed behind the end of the base was zero before
        (12, [(6, 1, True), (8, 4, True)]),
    ],
)
def test_what_has_changed(zfs: Zfs, base: int, end: list[tuple[int, int, bool]]) -> None:
    zfs.script('case "$*" in *-i*) cat $folder/delta;; *) cat $folder/base;; esac')
    zfs.has("base", full(base))
    zfs.has("delta", delta())
    ranges = streams().changed("tank/a@two", "tank/a@one", start=0, size_bytes=SIZE)
    in_blocks = [(offset // BLOCK, length // BLOCK, zero) for offset, length, zero in ranges]
    assert in_blocks == [(1, 1, False), (3, 1, True), *end]
    assert sorted(zfs.commands) == [
        "send --raw -- tank/a@one",
        "send --raw -i tank/a@one -- tank/a@two",
    ]


def test_the_error_of_zfs_is_told(zfs: Zfs) -> None:
    zfs.script("cat $folder/one; echo \"cannot open 'tank/a@one': dataset is busy\" >&2; exit 1")
    content = full(5)
    content.content = content.content[:3000]
    zfs.has("one", content)
    with pytest.raises(ZfsiloError, match="tank/a@one is busy") as failed:
        list(streams().allocated("tank/a@one", start=0, size_bytes=SIZE))
    assert failed.value.reason == "DATASET_BUSY"


def test_an_error_after_the_whole_stream_is_told(zfs: Zfs) -> None:
    zfs.script("cat $folder/one; echo 'warning: it is bad' >&2; exit 3")
    zfs.has("one", full(5))
    with pytest.raises(CommandFailed, match="it is bad"):
        list(streams().allocated("tank/a@one", start=0, size_bytes=SIZE))


def test_a_stream_that_ends_early_is_an_error(zfs: Zfs) -> None:
    zfs.script("head -c 40000 $folder/one")
    zfs.has("one", full(5))
    with pytest.raises(CommandFailed, match="ends before its end record"):
        list(streams().allocated("tank/a@one", start=0, size_bytes=SIZE))


def test_a_zfs_that_is_silent_is_ended(zfs: Zfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_blocks, "STALL_S", 0.1)
    zfs.script("echo $$ > $folder/pid; exec sleep 1000")
    with pytest.raises(Unavailable) as failed:
        list(streams().allocated("tank/a@one", start=0, size_bytes=SIZE))
    assert failed.value.reason == "TOOL_TIMEOUT"


def test_a_reader_that_stops_ends_zfs(zfs: Zfs) -> None:
    zfs.script("echo $$ > $folder/pid; cat $folder/one; exec sleep 1000")
    zfs.has("one", MadeStream().begin().object().write(0, BLOCK).write(9 * BLOCK, BLOCK))
    ranges = streams().allocated("tank/a@one", start=0, size_bytes=SIZE)
    assert next(ranges) == (0, BLOCK, False)
    ranges.close()  # type: ignore[attr-defined]
    del ranges
    with pytest.raises(ProcessLookupError):
        os.kill(int((zfs.folder / "pid").read_text()), 0)


def test_a_stream_is_slowed_down(zfs: Zfs, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    zfs.script("cat $folder/one")
    stream = full(60)
    zfs.has("one", stream)
    rate = len(stream.content) / 1000
    list(streams(rate).allocated("tank/a@one", start=0, size_bytes=SIZE))
    assert sum(slept) > 900, "a thousand seconds at this rate"


def of_two(created: str, base_created: str) -> tuple[RealSnapshots, ScriptedRunner]:
    """Return a host with two snapshots, made by these transaction groups."""
    script = []
    for name, uid, txg in ((SNAP_A, SET_UID, created), (SNAP_BASE, BASE_UID, base_created)):
        own = rows(name, set_uid=uid) + f"{name}\tcreatetxg\t{txg}\t-\n"
        output = ZVOL_A + own + f"{name}\tvolsize\t{SIZE}\t-\n" + POOL
        script.append((f"{GET} {name} tank", 0, output, ""))
    run = ScriptedRunner(*script)
    return RealSnapshots(run, RealZfs(run)), run


@pytest.mark.parametrize("base_created", ["9", "10"])
def test_a_base_is_older_by_its_transaction_group(base_created: str) -> None:
    adapter, run = of_two("9", base_created)
    with pytest.raises(InvalidArgument, match="not older") as failed:
        adapter.read_blocks(A, SET_UID, base=A, base_uid=BASE_UID, start=0)
    assert failed.value.reason == "BAD_BASE"
    assert not run.script


def test_an_older_base_is_read(zfs: Zfs) -> None:
    adapter, run = of_two("9", "8")
    zfs.script("exit 1")
    with pytest.raises(CommandFailed):
        adapter.read_blocks(A, SET_UID, base=A, base_uid=BASE_UID, start=0)
    assert not run.script
    assert zfs.commands == [f"send --raw -- {SNAP_BASE}"]


def test_a_snapshot_that_does_not_exist() -> None:
    run = ScriptedRunner((f"{GET} {SNAP_A} tank", 1, ZVOL_A + POOL, absent(SNAP_A)))
    with pytest.raises(FailedPrecondition, match=f"{SNAP_A} does not exist") as failed:
        RealSnapshots(run, RealZfs(run)).read_blocks(
            A.but(uid=UID), SET_UID, base=None, base_uid="", start=0
        )
    assert failed.value.reason == "LOST"

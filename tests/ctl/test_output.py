"""The exact output for volumes, statistics and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import volume_pb2

from zfsilod.ctl import messages as pb
from zfsilod.ctl.output import volume as volume_output
from zfsilod.ctl.output.messages import as_json
from zfsilod.ctl.output.table import clean, show_block, show_table
from zfsilod.wire.plain import plain

if TYPE_CHECKING:
    from zfsilod.ctl.messages import Stamp

NOW = 1_800_000_000
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _plain_and_timeless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("time.time", lambda: float(NOW))


def at(stamp: Stamp, seconds_ago: int) -> None:
    stamp.seconds = NOW - seconds_ago


def on_server() -> Any:
    volume = pb.Volume(
        name="volumes/data",
        id="data",
        uid="9" * 32,
        dataset="tank/zfsilo/data",
        capacity_bytes=3 * GIB // 2,
        thin=True,
        mode=pb.MODE_FILESYSTEM,
        volblocksize=16384,
        properties={"compression": "zstd"},
        labels={"rack": "7", "app": "db"},
        hosts=["take", "*"],
        access_modes=[pb.ACCESS_MODE_SINGLE_NODE_WRITER],
        filesystem=pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, type="ext4", uuid="1-2-3"),
        state=pb.STATE_PUBLISHED,
        etag="17",
        publications=[
            pb.Publication(
                host="hosts/take",
                initiator="iqn.2026-01.org:take",
                epoch=3,
                access_mode=pb.ACCESS_MODE_SINGLE_NODE_WRITER,
                readonly=True,
                published_by="host take (certificate 0011, 10.0.0.2)",
            )
        ],
    )
    volume.used_bytes = 211 << 20
    at(volume.create_time, 90)
    at(volume.publications[0].create_time, 86400 * 3)
    return volume


def on_client() -> Any:
    return pb.Volume(
        name="volumes/logs",
        id="logs",
        state=pb.STATE_MOUNTED,
        etag="18",
        attachment=pb.Attachment(
            server="give",
            volume="data",
            state=pb.STATE_MOUNTED,
            epoch=3,
            disk=pb.Disk(target="iqn.2026-01.org:x", serial="9" * 32, size_bytes=GIB),
            portals=["10.0.0.1:3260"],
            mode=pb.MODE_BLOCK,
            restore=pb.RESTORE_NEVER,
            filesystem=pb.Filesystem(state=pb.FILESYSTEM_STATE_NONE),
            staging_path="/stage",
            mount_options=["noatime"],
            stage_readonly=True,
            mounts=[pb.Mount(path="/srv/a"), pb.Mount(path="/srv/b", readonly=True)],
        ),
    )


def test_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    volume_output.show_list([on_server(), on_client()])
    assert (
        capsys.readouterr().out
        == """\
NAME     SIZE       USED  STATE      FILESYSTEM  PUBLISHED TO  SERVER  MOUNTED AT      AGE
data  1.5 GiB  211.0 MiB  published  ext4        take          -       -               1m
logs  1.0 GiB          -  mounted    block       -             give    /srv/a, /srv/b  -
"""
    )


def test_a_volume_on_its_server(capsys: pytest.CaptureFixture[str]) -> None:
    volume_output.show_headline(on_server(), different=False, unknown=False)
    volume_output.show_volume(on_server())
    assert (
        capsys.readouterr().out
        == """\
volume data: healthy, published to take
  Size:           1.5 GiB (1610612736 bytes)
  Filesystem:     ext4 ready 1-2-3
  Dataset:        tank/zfsilo/data (thin, blocks of 16.0 KiB)
  Properties:     compression=zstd
  Labels:         app=db, rack=7
  Allowed hosts:  take, *
  Access modes:   single_node_writer
  Uid:            99999999999999999999999999999999
  Etag:           17
  Created:        2027-01-15 07:58:30 UTC (1m ago)

published to
  HOST  INITIATOR             ACCESS                         EPOCH  BY         AGE
  take  iqn.2026-01.org:take  single_node_writer, read-only      3  host take  3d
"""
    )


def test_a_volume_on_a_client(capsys: pytest.CaptureFixture[str]) -> None:
    volume = on_client()
    at(volume.create_time, 90)
    volume_output.show_headline(volume, different=False, unknown=False)
    volume_output.show_volume(volume)
    assert (
        capsys.readouterr().out
        == """\
volume logs: healthy, mounted at /srv/a, /srv/b
  Size:       1.0 GiB (1073741824 bytes)
  Etag:       18
  Connected:  2027-01-15 07:58:30 UTC (1m ago)

on this host
  Server:      give (volume data, epoch 3)
  Target:      iqn.2026-01.org:x
  Portals:     10.0.0.1:3260
  Disk:        1.0 GiB (1073741824 bytes), serial 99999999999999999999999999999999
  Access:      read-write
  Staged at:   /stage
  Options:     noatime,ro
  Mounted at:  /srv/a, /srv/b (ro)
  At boot:     not restored
"""
    )


@pytest.mark.parametrize(
    ("different", "unknown", "condition", "operation", "shown"),
    [
        (True, False, "", "", "NEEDS ATTENTION, should be mounted at /srv/a, /srv/b"),
        (False, False, "it fails", "", "NEEDS ATTENTION, should be mounted at /srv/a, /srv/b"),
        (False, True, "", "", "mounted at /srv/a, /srv/b by its records; not all facts are known"),
        (False, True, "", "operations/x", "mounted at /srv/a, /srv/b; an operation changes it"),
    ],
)
def test_the_headline_of_a_volume_that_is_not_known_to_be_healthy(
    capsys: pytest.CaptureFixture[str],
    different: bool,
    unknown: bool,
    condition: str,
    operation: str,
    shown: str,
) -> None:
    volume = on_client()
    volume.operation = operation
    volume.conditions.extend([condition] if condition else [])
    volume_output.show_headline(volume, different=different, unknown=unknown)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"volume logs: {shown}")
    assert lines[1:] == ([f"  ! {condition}"] if condition else []), "its owner repairs the rest"


def test_stats(capsys: pytest.CaptureFixture[str]) -> None:
    volume_output.show_stats(
        "data", pb.VolumeStats(volsize_bytes=GIB, inodes_total=7, inodes_used=0)
    )
    assert (
        capsys.readouterr().out
        == """\
volume data
  Size:         1.0 GiB (1073741824 bytes)
  Inodes:       7
  Inodes used:  0
"""
    )


def test_json_is_stable() -> None:
    sent = plain(volume_pb2.Publication(volume="volumes/ä", epoch=3))
    text = as_json(pb.parsed("Publication", sent))
    assert (
        text
        == """\
{
  "access_mode": "ACCESS_MODE_UNSPECIFIED",
  "epoch": "3",
  "host": "",
  "initiator": "",
  "published_by": "",
  "readonly": false,
  "rotation": 0,
  "rotation_due": false,
  "tls": false,
  "transport": "TRANSPORT_UNSPECIFIED",
  "volume": "volumes/ä"
}"""
    )


def test_an_unknown_value_of_a_newer_server_is_shown() -> None:
    assert volume_output.word(99, "STATE_") == "99"


def test_control_characters_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert clean("a\x1b[2Jb\nc\u202ed") == "a?[2Jb?c?d"
    show_table(("NAME",), [["\x1b[31mred"]])
    show_block("", [("Label", "\x07bell")])
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert "\x07" not in out


def test_long_names_are_cut_in_the_middle_and_numbers_never(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    volume = on_server()
    volume.id = "pvc-" + 12 * "0123456789-" + "end"
    volume.publications[0].host = "hosts/a-client-with-a-very-long-name"
    volume_output.show_list([volume])
    head, row = capsys.readouterr().out.splitlines()
    assert max(len(head), len(row)) <= 60
    assert row.split()[0].endswith("end")
    assert "…" in row.split()[0]
    assert "  1.5 GiB  211.0 MiB  published  " in row


def test_colours_only_on_a_terminal_without_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for no_colour, terminal, bold in (("", True, True), ("1", True, False), ("", False, False)):
        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setattr("sys.stdout.isatty", lambda is_one=terminal: is_one)
        show_table(("NAME",), [["data"]])
        assert capsys.readouterr().out.startswith("\x1b[1mNAME\x1b[0m") is bold

"""How volumes look to people."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl.output.table import show_block, show_table
from zfsilod.ctl.parse import bare, show_age
from zfsilod.model.sizes import show_exact, show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

LIST = ("NAME", "SIZE", "STATE", "FILESYSTEM", "PUBLISHED TO", "SERVER", "MOUNTED AT", "AGE")


def show_list(volumes: Sequence[Any], *, deleted: bool = False) -> None:
    """Print volumes as a table; with those in the trash when they were asked for."""
    if not deleted:
        show_table(LIST, [_row(each) for each in volumes])
        return
    rows = [[*_row(each), age(each.delete_time), _trash_uid(each)] for each in volumes]
    show_table((*LIST, "DELETED", "UID"), rows)


def _trash_uid(volume: Any) -> str:
    """Return what tells deleted volumes of one name apart; a living one needs no such thing."""
    return str(volume.uid) if volume.HasField("delete_time") else ""


def _row(volume: Any) -> list[str]:
    here = volume.attachment
    return [
        volume.id,
        show_size(size_of(volume)),
        state(volume.state),
        _kind(volume),
        commas(bare(each.host, "hosts") for each in volume.publications),
        here.server,
        commas(each.path for each in here.mounts),
        age(volume.create_time),
    ]


def size_of(volume: Any) -> int:
    """Return a volume's size as this host knows it."""
    return int(volume.capacity_bytes or volume.attachment.disk.size_bytes)


def _kind(volume: Any) -> str:
    """Return what is on a volume in a word: ext4, block, or "" before its first use."""
    if pb.MODE_BLOCK in (volume.mode, volume.attachment.mode):
        return "block"
    return str(volume.filesystem.type or volume.attachment.filesystem.type)


def show_volume(volume: Any) -> None:
    """Print all that is known of a volume."""
    show_block(f"volume {volume.id}", [*_common(volume), *_served(volume)])
    if volume.publications:
        print("\npublished to")
        show_table(
            ("HOST", "INITIATOR", "ACCESS", "EPOCH", "BY", "AGE"),
            [_publication(each) for each in volume.publications],
            indent="  ",
        )
    if volume.HasField("attachment"):
        print()
        show_block("on this host", _attached(volume.attachment))


def _common(volume: Any) -> list[tuple[str, str]]:
    return [
        ("State", state(volume.state)),
        ("Size", show_exact(size_of(volume))),
        ("Used as", word(pb.Mode, volume.mode, "MODE_")),
        ("Operation", bare(volume.operation, "operations")),
        ("Wrong", "; ".join(volume.conditions)),
        ("Filesystem", filesystem(volume.filesystem)),
    ]


def _served(volume: Any) -> list[tuple[str, str]]:
    """Return what only its storage host knows."""
    if not volume.dataset:
        return [("Etag", volume.etag), ("Created", when(volume.create_time))]
    thin = "thin" if volume.thin else "thick"
    return [
        ("Dataset", f"{volume.dataset} ({thin}, blocks of {show_size(volume.volblocksize)})"),
        ("Properties", pairs(volume.properties)),
        ("Made from", volume.source.snapshot or volume.source.volume),
        ("Labels", pairs(volume.labels)),
        ("May publish", commas(volume.hosts)),
        ("Access", commas(word(pb.AccessMode, m, "ACCESS_MODE_") for m in volume.access_modes)),
        ("Uid", volume.uid),
        ("Etag", volume.etag),
        ("Created", when(volume.create_time)),
        ("Changed", when(volume.update_time)),
    ]


def _publication(publication: Any) -> list[str]:
    access = word(pb.AccessMode, publication.access_mode, "ACCESS_MODE_")
    access += ", readonly" if publication.readonly else ""
    access += ", new secrets due" if publication.rotation_due else ""
    return [
        bare(publication.host, "hosts"),
        publication.initiator,
        access,
        str(publication.epoch),
        publication.published_by,
        age(publication.create_time),
    ]


def _attached(here: Any) -> list[tuple[str, str]]:
    published = ", published by this host" if here.published_here else ""
    options = [*here.mount_options, *(["ro"] if here.stage_readonly else [])]
    return [
        ("State", state(here.state)),
        ("Server", f"{here.server} (volume {here.volume}, epoch {here.epoch}{published})"),
        ("Target", here.disk.target),
        ("Portals", commas(here.portals)),
        ("Disk", f"{show_exact(here.disk.size_bytes)}, serial {here.disk.serial}"),
        ("Access", "readonly" if here.readonly else "read and write"),
        ("Filesystem", filesystem(here.filesystem)),
        ("Staged at", here.staging_path),
        ("Options", ",".join(options)),
        ("Mounted at", commas(f"{m.path}{' (ro)' if m.readonly else ''}" for m in here.mounts)),
        ("After a reboot", word(pb.Restore, here.restore, "RESTORE_")),
    ]


def show_stats(name: str, stats: Any) -> None:
    """Print how full a volume is."""
    lines = []
    for field, title in STATS:
        if stats.HasField(field):
            value = getattr(stats, field)
            lines.append((title, show_exact(value) if field.endswith("_bytes") else str(value)))
    show_block(f"volume {name}", lines)


STATS = (
    ("volsize_bytes", "Size"),
    ("used_bytes", "Takes of the pool"),
    ("referenced_bytes", "Content takes"),
    ("filesystem_total_bytes", "Filesystem"),
    ("filesystem_used_bytes", "Used"),
    ("filesystem_available_bytes", "Free"),
    ("inodes_total", "Inodes"),
    ("inodes_used", "Inodes used"),
    ("inodes_available", "Inodes free"),
)


def filesystem(found: Any) -> str:
    """Return what is on a volume, in words."""
    state = word(pb.FilesystemState, found.state, "FILESYSTEM_STATE_")
    if state in ("", "none"):
        return state
    return f"{found.type} {state} {found.uuid}".strip()


def state(value: int) -> str:
    """Return a state as a word."""
    return word(pb.State, value, "STATE_")


@lru_cache
def word(enum: Any, value: int, prefix: str) -> str:
    """Return an enum's value as people write it; what is not told is ""."""
    if value not in enum.values():
        return str(value)  # of a newer server
    name: str = enum.Name(value).removeprefix(prefix).lower()
    return "" if name == "unspecified" else name


def pairs(mapping: Any) -> str:
    """Return labels or properties on one line."""
    return commas(f"{name}={mapping[name]}" for name in sorted(mapping))


def commas(texts: Iterable[str]) -> str:
    """Return texts as one list."""
    return ", ".join(texts)


def age(stamp: Timestamp) -> str:
    """Return how long ago a moment was."""
    return show_age(int(time.time()) - stamp.seconds) if stamp.seconds else ""


def when(stamp: Timestamp) -> str:
    """Return a moment, in UTC, and how long ago it was."""
    if not stamp.seconds:
        return ""
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stamp.seconds))
    return f"{text} ({age(stamp)} ago)"

"""Volumes, publications and attachments as tables and blocks of text."""

from __future__ import annotations

import time

from zfsilod.ctl import messages as pb
from zfsilod.ctl.output.table import BAD, BOLD, DOUBT, GOOD, clean, paint, show_block, show_table
from zfsilod.ctl.parse import bare
from zfsilod.ctl.times import age, when
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.sizes import show_exact, show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

RESTORE = {pb.RESTORE_BOOT: "restored", pb.RESTORE_NEVER: "not restored"}
LIST = (
    "NAME",
    "SIZE",
    "USED",
    "STATE",
    "FILESYSTEM",
    "PUBLISHED TO",
    "SERVER",
    "MOUNTED AT",
    "AGE",
)


def show_list(volumes: Sequence[Any], *, deleted: bool = False) -> None:
    """Print volumes as a table; `deleted`: with the columns for volumes in the trash."""
    if not deleted:
        show_table(LIST, [_row(volume) for volume in volumes])
        return
    rows = [
        [
            *_row(volume),
            age(volume.delete_time),
            volume.uid if volume.HasField("delete_time") else "",  # several may have one id
        ]
        for volume in volumes
    ]
    show_table((*LIST, "DELETED", "UID"), rows)


def _row(volume: Any) -> list[str]:
    attachment = volume.attachment
    is_block = pb.MODE_BLOCK in (volume.mode, attachment.mode)
    return [
        volume.id,
        show_size(size_of(volume)),
        show_size(volume.used_bytes) if volume.HasField("used_bytes") else "",
        state(volume.state),
        "block" if is_block else volume.filesystem.type or attachment.filesystem.type,
        commas(bare(publication.host, "hosts") for publication in volume.publications),
        attachment.server,
        commas(mount.path for mount in attachment.mounts),
        age(volume.create_time),
    ]


def size_of(volume: Any) -> int:
    """Return the size of a volume on its server, or of its disk on a client."""
    return int(volume.capacity_bytes or volume.attachment.disk.size_bytes)


def show_headline(volume: Any, *, different: bool, unknown: bool) -> None:
    """Print the name of a volume, whether it is healthy, where it is, and its problems.

    `different`: facts differ from its records; `unknown`: some are not known.
    """
    where = whereabouts(volume)
    if different or volume.conditions:
        verdict, colour = f"NEEDS ATTENTION, should be {where}", BAD
    elif volume.operation:
        verdict, colour = f"{where}; an operation changes it", DOUBT
    elif unknown:
        verdict, colour = f"{where} by its records; not all facts are known now", DOUBT
    else:
        verdict, colour = f"healthy, {where}", GOOD
    print(f"{paint(BOLD, f'volume {volume.id}')}: {paint(colour, clean(verdict))}")
    for sentence in volume.conditions:
        print(f"  ! {clean(sentence)}")
    is_repaired_by_owner = volume.attachment.restore == pb.RESTORE_NEVER
    if different and not volume.conditions and not is_repaired_by_owner:
        print(f"  try: zfsiloctl volume sync {volume.id}")


def whereabouts(volume: Any) -> str:
    """Return where a volume can be used: "mounted at /srv/data", "published to take"."""
    paths = {
        pb.STATE_MOUNTED: [mount.path for mount in volume.attachment.mounts],
        pb.STATE_STAGED: [volume.attachment.staging_path],
        pb.STATE_PUBLISHED: [bare(one.host, "hosts") for one in volume.publications],
    }.get(volume.state, [])
    preposition = "to" if volume.state == pb.STATE_PUBLISHED else "at"
    places = f" {preposition} {commas(paths)}" if any(paths) else ""
    if volume.HasField("replica") and not places:
        return "a replica"
    return f"{state(volume.state)}{places}"


def show_volume(volume: Any, *, unit: str = "") -> None:
    """Print the details of a volume, below its headline; `unit`: the one that attaches it."""
    used_as = word(volume.mode, "MODE_")
    show_block(
        "",
        [
            ("Size", show_exact(size_of(volume))),
            ("Used as", "block device" if used_as == "block" else ""),
            ("Operation", bare(volume.operation, "operations")),
            ("Filesystem", filesystem(volume.filesystem)),
            *_on_server(volume),
        ],
    )
    if volume.publications:
        print("\npublished to")
        show_table(
            ("HOST", "INITIATOR", "ACCESS", "EPOCH", "BY", "AGE"),
            [_publication(publication) for publication in volume.publications],
            indent="  ",
        )
    elif volume.dataset:
        print("\nnot published")
    if volume.HasField("attachment"):
        print()
        show_block("on this host", _attachment(volume, unit))


def _on_server(volume: Any) -> list[tuple[str, str]]:
    """Return the values that only the server of the volume knows."""
    if not volume.dataset:
        return [("Etag", volume.etag), ("Connected", when(volume.create_time))]
    thin = "thin" if volume.thin else "thick"
    return [
        ("Dataset", f"{volume.dataset} ({thin}, blocks of {show_size(volume.volblocksize)})"),
        ("Encryption", encryption(volume)),
        ("Replica of", replica_of(volume)),
        ("Replicated to", commas(map(replicated_to, volume.replications))),
        ("Asks", commas(volume.peers)),
        ("Set aside", f"the data of {volume.aside_of}" if volume.aside_of else ""),
        ("Properties", pairs(volume.properties)),
        ("Cloned from", volume.source.snapshot or volume.source.volume),
        ("Labels", pairs(volume.labels)),
        ("Allowed hosts", commas(volume.hosts)),
        (
            "Access modes",
            commas(word(mode, "ACCESS_MODE_") for mode in volume.access_modes),
        ),
        ("Transport", word(volume.transport, "TRANSPORT_") + (" with TLS" if volume.tls else "")),
        ("Limits", limits(volume)),
        ("Uid", volume.uid),
        ("Etag", volume.etag),
        ("Created", when(volume.create_time)),
        ("Updated", when(volume.update_time) if volume.update_time != volume.create_time else ""),
    ]


def limits(volume: Any) -> str:
    """Return the limits of the I/O of a volume: "500 reads/s, 100 MiB/s written"; "": none."""
    iops = ((volume.limit_read_iops, "reads/s"), (volume.limit_write_iops, "writes/s"))
    rates = ((volume.limit_read_bytes, "read"), (volume.limit_write_bytes, "written"))
    return commas(
        [
            *(f"{value} {name}" for value, name in iops if value),
            *(f"{show_size(value)}/s {name}" for value, name in rates if value),
        ]
    )


def encryption(volume: Any) -> str:
    """Return how a volume is encrypted, and whether its key was shown; "": it is not."""
    if not volume.encrypted:
        return ""
    if not volume.HasField("key"):
        return "aes-256-gcm, no key in the store: see zfsiloctl volume probe"
    if volume.key.volume_uid != volume.uid:
        return "aes-256-gcm, by the key of its origin"
    shown = when(volume.key.export_time) if volume.key.HasField("export_time") else "never"
    return f"aes-256-gcm, key {volume.key.rotation}, shown as recovery key: {shown}"


def _publication(publication: Any) -> list[str]:
    access = word(publication.access_mode, "ACCESS_MODE_")
    access += ", read-only" if publication.readonly else ""
    access += ", new secrets due" if publication.rotation_due else ""
    return [
        bare(publication.host, "hosts"),
        publication.initiator,
        access,
        str(publication.epoch),
        short_caller(publication.published_by),
        age(publication.create_time),
    ]


def _attachment(volume: Any, unit: str) -> list[tuple[str, str]]:
    """Return the values of an attachment, without those that the volume has too."""
    attachment, disk = volume.attachment, volume.attachment.disk
    same_disk = (disk.size_bytes, disk.serial) == (volume.capacity_bytes, volume.uid)
    same_filesystem = volume.filesystem.uuid == attachment.filesystem.uuid
    by_itself = ", published by this host" if attachment.published_here else ""
    source = f"volume {attachment.volume}, epoch {attachment.epoch}{by_itself}"
    options = [*attachment.mount_options, *(["ro"] if attachment.stage_readonly else [])]
    return [
        ("Server", f"{attachment.server} ({source})"),
        ("Target", disk.target),
        ("Portals", commas(attachment.portals)),
        ("Disk", "" if same_disk else f"{show_exact(disk.size_bytes)}, serial {disk.serial}"),
        ("Access", "read-only" if attachment.readonly else "read-write"),
        ("Filesystem", "" if same_filesystem else filesystem(attachment.filesystem)),
        ("Staged at", attachment.staging_path),
        ("Options", ",".join(options)),
        (
            "Mounted at",
            commas(
                f"{mount.path}{' (ro)' if mount.readonly else ''}" for mount in attachment.mounts
            ),
        ),
        ("At boot", f"attached by {unit}" if unit else RESTORE.get(attachment.restore, "")),
    ]


def show_stats(name: str, stats: Any) -> None:
    """Print the size and usage of a volume."""
    lines = []
    for field, title in STATS:
        if stats.HasField(field):
            value = getattr(stats, field)
            lines.append((title, show_exact(value) if field.endswith("_bytes") else str(value)))
    show_block(f"volume {name}", lines)


STATS = (
    ("volsize_bytes", "Size"),
    ("used_bytes", "Used in pool"),
    ("referenced_bytes", "Referenced"),
    ("filesystem_total_bytes", "Filesystem"),
    ("filesystem_used_bytes", "Used"),
    ("filesystem_available_bytes", "Free"),
    ("inodes_total", "Inodes"),
    ("inodes_used", "Inodes used"),
    ("inodes_available", "Inodes free"),
)


def replica_of(volume: Any) -> str:
    """Return who sends a replica, and which snapshot of it is here; "": it is not a replica."""
    if not volume.HasField("replica"):
        return ""
    replica = volume.replica
    if not replica.HasField("snapshot_time"):
        return f"{replica.peer}, no snapshot is whole yet"
    return f"{replica.peer}, as of {when(replica.snapshot_time)}"


def replicated_to(replication: Any) -> str:
    """Return a peer, and which snapshot it has."""
    if not replication.HasField("snapshot_time"):
        return f"{replication.peer} (nothing has arrived yet)"
    unfinished = ", a newer one is unfinished" if replication.pending else ""
    due = replication.due_time.seconds
    if due and due < time.time():
        unfinished += f", late: a newer one was due {when(replication.due_time)}"
    return f"{replication.peer} (as of {when(replication.snapshot_time)}{unfinished})"


def filesystem(message: Any) -> str:
    """Return a filesystem as text: its type, state and uuid."""
    state = word(message.state, "FILESYSTEM_STATE_")
    if state in ("", "none"):
        return state
    return f"{message.type} {state} {message.uuid}".strip()


def state(value: str) -> str:
    """Return a state in lower case."""
    return word(value, "STATE_")


def word(value: str | int, prefix: str) -> str:
    """Return a value of an enumeration in lower case, without its prefix; unspecified is ""."""
    name = str(value).removeprefix(prefix).lower()
    return "" if name == "unspecified" else name


def short_caller(caller: str) -> str:
    """Return a caller without its certificate and its address."""
    name = clean(caller).partition(" (")[0]
    return "root" if name == "uid 0" else name


def pairs(mapping: Any) -> str:
    """Return labels or properties on one line."""
    return commas(f"{name}={mapping[name]}" for name in sorted(mapping))


def commas(texts: Iterable[str]) -> str:
    """Return texts with commas between them."""
    return ", ".join(texts)

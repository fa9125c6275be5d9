"""`zfsiloctl snapshot` and `snapshot-group`: create, list, show, delete."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change
from zfsilod.ctl.client import dial
from zfsilod.ctl.filters import all_of, label_filters
from zfsilod.ctl.output.messages import as_json, show_all
from zfsilod.ctl.output.table import show_block, show_table
from zfsilod.ctl.output.volume import commas, filesystem, pairs
from zfsilod.ctl.parse import assignments, bare, resource
from zfsilod.ctl.times import age, when
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.sizes import show_exact, show_size

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

LIST = ("NAME", "VOLUME", "SIZE", "FILESYSTEM", "GROUP", "LABELS", "AGE")


def create(args: Namespace) -> None:
    """Take a snapshot."""
    request = pb.CreateSnapshotRequest(
        snapshot_id=bare(args.snapshot or "", "snapshots"),
        volume=resource(args.name, "volumes"),
        labels=assignments(args.label, "label"),
    )
    with dial(args) as server:
        change(args, server, "CreateSnapshot", request)


def list_snapshots(args: Namespace) -> None:
    """List snapshots."""
    request = pb.ListSnapshotsRequest(filter=all_of(args.filter, *label_filters(args.label)))
    if args.volume:
        request.volume = resource(args.volume, "volumes")
    with dial(args) as server:
        snapshots = server.ask_all("ListSnapshots", request, "snapshots")
    show_all(
        args,
        "snapshots",
        snapshots,
        name=lambda snapshot: str(snapshot.id),
        table=lambda: show_table(LIST, [_row(snapshot) for snapshot in snapshots]),
    )


def show(args: Namespace) -> None:
    """Show a snapshot."""
    request = pb.GetSnapshotRequest(name=resource(args.name, "snapshots"))
    with dial(args) as server:
        snapshot = server.ask("GetSnapshot", request)
    if args.json:
        print(as_json(snapshot))
        return
    show_block(
        f"snapshot {snapshot.id}",
        [
            ("Volume", f"{bare(snapshot.volume, 'volumes')} (uid {snapshot.volume_uid})"),
            ("Size", show_exact(snapshot.size_bytes)),
            ("Filesystem", filesystem(snapshot.filesystem)),
            ("Group", bare(snapshot.group, "snapshotGroups")),
            ("Policy", bare(snapshot.policy, "snapshotPolicies")),
            ("Labels", pairs(snapshot.labels)),
            ("Operation", bare(snapshot.operation, "operations")),
            ("Etag", snapshot.etag),
            ("Taken", when(snapshot.create_time)),
        ],
    )


def blocks(args: Namespace) -> None:
    """Print the blocks of a snapshot that are in use, or differ from an older one, as they come."""
    request = pb.ReadSnapshotBlocksRequest(
        name=resource(args.name, "snapshots"),
        base=resource(args.since, "snapshots") if args.since else "",
    )
    with dial(args) as server:
        for message in server.watch("ReadSnapshotBlocks", request, args.timeout).responses():
            if args.json:
                print(as_json(message))
                continue
            for one in message.ranges:
                print(one.offset, one.length, "zero" if one.zero else "data")


def delete(args: Namespace) -> None:
    """Delete a snapshot."""
    request = pb.DeleteSnapshotRequest(name=resource(args.name, "snapshots"), etag=args.etag)
    with dial(args) as server:
        change(args, server, "DeleteSnapshot", request)


def create_group(args: Namespace) -> None:
    """Take snapshots of several volumes at the same moment."""
    request = pb.CreateSnapshotGroupRequest(
        group_id=bare(args.name, "snapshotGroups"),
        labels=assignments(args.label, "label"),
        volumes=[resource(volume, "volumes") for volume in args.volume],
    )
    with dial(args) as server:
        change(args, server, "CreateSnapshotGroup", request)


def list_groups(args: Namespace) -> None:
    """List snapshot groups."""
    request = pb.ListSnapshotGroupsRequest(filter=all_of(args.filter, *label_filters(args.label)))
    with dial(args) as server:
        groups = server.ask_all("ListSnapshotGroups", request, "groups")
    rows = [
        [
            group.id,
            commas(bare(snapshot.volume, "volumes") for snapshot in group.snapshots),
            pairs(group.labels),
            age(group.create_time),
        ]
        for group in groups
    ]
    show_all(
        args,
        "groups",
        groups,
        name=lambda group: str(group.id),
        table=lambda: show_table(("NAME", "VOLUMES", "LABELS", "AGE"), rows),
    )


def show_group(args: Namespace) -> None:
    """Show a group and its snapshots."""
    request = pb.GetSnapshotGroupRequest(name=resource(args.name, "snapshotGroups"))
    with dial(args) as server:
        group = server.ask("GetSnapshotGroup", request)
    if args.json:
        print(as_json(group))
        return
    show_block(
        f"snapshot group {group.id}",
        [
            ("Policy", bare(group.policy, "snapshotPolicies")),
            ("Labels", pairs(group.labels)),
            ("Etag", group.etag),
            ("Taken", when(group.create_time)),
        ],
    )
    print()
    show_table(LIST, [_row(snapshot) for snapshot in group.snapshots])


def delete_group(args: Namespace) -> None:
    """Delete a group and its snapshots."""
    request = pb.DeleteSnapshotGroupRequest(
        name=resource(args.name, "snapshotGroups"), etag=args.etag
    )
    with dial(args) as server:
        change(args, server, "DeleteSnapshotGroup", request)


def _row(snapshot: Any) -> list[str]:
    return [
        snapshot.id,
        bare(snapshot.volume, "volumes"),
        show_size(snapshot.size_bytes),
        snapshot.filesystem.type,
        bare(snapshot.group, "snapshotGroups"),
        pairs(snapshot.labels),
        age(snapshot.create_time),
    ]

"""`zfsiloctl snapshot` and `snapshot-group`: what volumes held at one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfsilo.v1 import snapshot_pb2 as pb

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.change import change
from zfsilod.ctl.client import dial
from zfsilod.ctl.filters import all_of, labels_are
from zfsilod.ctl.output.table import show_block, show_table
from zfsilod.ctl.output.volume import age, commas, filesystem, pairs, when
from zfsilod.ctl.parse import assignments, bare, resource
from zfsilod.model.sizes import show_exact, show_size

if TYPE_CHECKING:
    from argparse import Namespace

LIST = ("NAME", "VOLUME", "SIZE", "FILESYSTEM", "GROUP", "LABELS", "AGE")


def create(given: Namespace) -> None:
    """Take a snapshot."""
    request = pb.CreateSnapshotRequest(
        snapshot_id=bare(given.snapshot or "", "snapshots"),
        volume=resource(given.name, "volumes"),
        labels=assignments(given.label, "label"),
    )
    with dial(given) as server:
        change(given, server, server.changes.snapshots.CreateSnapshot, request)


def list_snapshots(given: Namespace) -> None:
    """List snapshots."""
    request = pb.ListSnapshotsRequest(filter=all_of(given.filter, *labels_are(given.label)))
    if given.volume:
        request.volume = resource(given.volume, "volumes")
    with dial(given) as server:
        found = server.ask_all(server.api.snapshots.ListSnapshots, request, "snapshots")
    rpc_errors.show_all(
        given,
        "snapshots",
        found,
        name=lambda each: str(each.id),
        table=lambda: show_table(LIST, [_row(each) for each in found]),
    )


def show(given: Namespace) -> None:
    """Show all that is known of a snapshot."""
    request = pb.GetSnapshotRequest(name=resource(given.name, "snapshots"))
    with dial(given) as server:
        found = server.ask(server.api.snapshots.GetSnapshot, request)
    if given.json:
        print(rpc_errors.as_json(found))
        return
    show_block(
        f"snapshot {found.id}",
        [
            ("Volume", f"{bare(found.volume, 'volumes')} (uid {found.volume_uid})"),
            ("Size", show_exact(found.size_bytes)),
            ("Filesystem", filesystem(found.filesystem)),
            ("Group", bare(found.group, "snapshotGroups")),
            ("Labels", pairs(found.labels)),
            ("Operation", bare(found.operation, "operations")),
            ("Etag", found.etag),
            ("Taken", when(found.create_time)),
        ],
    )


def delete(given: Namespace) -> None:
    """Give a snapshot up."""
    request = pb.DeleteSnapshotRequest(name=resource(given.name, "snapshots"), etag=given.etag)
    with dial(given) as server:
        change(given, server, server.changes.snapshots.DeleteSnapshot, request)


def create_group(given: Namespace) -> None:
    """Take snapshots of several volumes at one moment."""
    request = pb.CreateSnapshotGroupRequest(
        group_id=bare(given.name, "snapshotGroups"),
        labels=assignments(given.label, "label"),
        volumes=[resource(each, "volumes") for each in given.volume],
    )
    with dial(given) as server:
        change(given, server, server.changes.snapshots.CreateSnapshotGroup, request)


def list_groups(given: Namespace) -> None:
    """List groups of snapshots."""
    request = pb.ListSnapshotGroupsRequest(filter=all_of(given.filter, *labels_are(given.label)))
    with dial(given) as server:
        found = server.ask_all(server.api.snapshots.ListSnapshotGroups, request, "groups")
    rows = [[g.id, commas(_volumes(g)), pairs(g.labels), age(g.create_time)] for g in found]
    rpc_errors.show_all(
        given,
        "groups",
        found,
        name=lambda each: str(each.id),
        table=lambda: show_table(("NAME", "VOLUMES", "LABELS", "AGE"), rows),
    )


def show_group(given: Namespace) -> None:
    """Show a group and its snapshots."""
    request = pb.GetSnapshotGroupRequest(name=resource(given.name, "snapshotGroups"))
    with dial(given) as server:
        found = server.ask(server.api.snapshots.GetSnapshotGroup, request)
    if given.json:
        print(rpc_errors.as_json(found))
        return
    show_block(
        f"snapshot group {found.id}",
        [
            ("Labels", pairs(found.labels)),
            ("Etag", found.etag),
            ("Taken", when(found.create_time)),
        ],
    )
    print()
    show_table(LIST, [_row(each) for each in found.snapshots])


def delete_group(given: Namespace) -> None:
    """Give all snapshots of a group up."""
    request = pb.DeleteSnapshotGroupRequest(
        name=resource(given.name, "snapshotGroups"), etag=given.etag
    )
    with dial(given) as server:
        change(given, server, server.changes.snapshots.DeleteSnapshotGroup, request)


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


def _volumes(group: Any) -> list[str]:
    return [bare(each.volume, "volumes") for each in group.snapshots]

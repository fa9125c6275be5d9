"""`zfsiloctl orphan` and `adopt`: what no record knows, removed or taken over."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.change import change
from zfsilod.ctl.client import dial
from zfsilod.ctl.commands.volume import check_terminal, confirmed, one_or_all
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.table import clean, show_table

if TYPE_CHECKING:
    from argparse import Namespace


def list_orphans(given: Namespace) -> None:
    """List what carries our marks on a host and no record owns."""
    with dial(given) as server:
        server.read_s = server.change_s  # it looks at the whole pool
        request = service_pb2.ListOrphansRequest()
        found = server.ask_all(server.api.service.ListOrphans, request, "orphans")
    rows = [(clean(each.name), clean(each.text), ", ".join(each.users)) for each in found]
    rpc_errors.show_all(
        given,
        "orphans",
        found,
        name=lambda each: clean(each.name),
        table=lambda: show_table(("NAME", "WHAT", "USED BY"), rows),
    )


def remove(given: Namespace) -> int:
    """Remove orphans, after a question on a terminal."""
    if not (given.yes or given.dry_run) and not _sure(given.name):
        return FAILED
    request = service_pb2.RemoveOrphansRequest(names=given.name, force=given.force)
    with dial(given) as server:
        change(given, server, server.changes.service.RemoveOrphans, request)
    return 0


def _sure(names: list[str]) -> bool:
    named = clean(", ".join(names))
    check_terminal(f"{named}, with the data there,")
    return confirmed(f"Remove {named}, with all data there?")


def adopt(given: Namespace) -> int:
    """Take over one zvol, or all that are ours."""
    one_or_all(given.dataset, "DATASET", everything=given.all)
    with dial(given) as server:
        if given.dataset:
            request = pb.AdoptVolumeRequest(dataset=given.dataset, volume_id=given.id)
            change(given, server, server.changes.volumes.AdoptVolume, request)
            return 0
        server.read_s = server.change_s
        found = server.ask(server.api.volumes.AdoptVolumes, pb.AdoptVolumesRequest())
    if given.json:
        print(rpc_errors.as_json(found))
    else:
        _show_adopted(given, found)
    return FAILED if found.complaints else 0


def _show_adopted(given: Namespace, found: pb.AdoptVolumesResponse) -> None:
    lines = [f"{name}: adopted" for name in (*found.volumes, *found.snapshots)]
    lines += [f"{name}: adopted, in the trash" for name in found.in_trash]
    lines += [f"{name}: {complaint}" for name, complaint in sorted(found.complaints.items())]
    lines += [f"not known: {sentence}" for sentence in found.unknown]
    if not (lines or given.quiet):
        lines = ["there is nothing to adopt"]
    sys.stdout.writelines(f"{clean(each)}\n" for each in lines)

"""`zfsiloctl volume promote` and `volume demote`: another server serves a volume."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change, send
from zfsilod.ctl.client import dial
from zfsilod.ctl.commands.volume import get
from zfsilod.ctl.confirm import confirmed
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.table import clean
from zfsilod.ctl.parse import resource
from zfsilod.ctl.times import age
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from zfsilod.ctl.client import Server


def promote(args: Namespace) -> int:
    """Promote a replica, after confirmation."""
    name = resource(args.name, "volumes")
    request = pb.PromoteVolumeRequest(name=name, primary_is_off=args.primary_is_off, etag=args.etag)
    with dial(args) as server:
        volume = get(server, name)
        lost = _lost(volume) if volume.HasField("replica") else ""
        return _ask_and_change(args, server, "PromoteVolume", request, lost)


def demote(args: Namespace) -> int:
    """Hand a volume over to another server, after confirmation."""
    request = pb.DemoteVolumeRequest(
        name=resource(args.name, "volumes"), peer=args.to, aside=args.aside, etag=args.etag
    )
    ends = f"No host can use it here any more; it is served after a promotion on {args.to}."
    if args.aside:
        ends = "Every host loses it, and what it has not written yet."
    with dial(args) as server:
        return _ask_and_change(args, server, "DemoteVolume", request, ends)


def _lost(volume: Any) -> str:
    """Return what a promotion loses: what was written since the snapshot that is here."""
    replica = volume.replica
    return (
        f"What {clean(replica.peer)} wrote after that snapshot, in the last "
        f"{age(replica.snapshot_time)}, is not here."
    )


def _ask_and_change(
    args: Namespace, server: Server, method: str, request: Any, consequence: str
) -> int:
    if not (args.yes or args.dry_run):
        request.validate_only = True
        # It raises before the question is asked.
        title = clean(send(server, method, request, follow=False).operation.title)
        request.validate_only = False
        question = f"{title[0].upper()}{title[1:]}? {consequence}".strip()
        if not confirmed(question):
            return FAILED
    change(args, server, method, request)
    return 0

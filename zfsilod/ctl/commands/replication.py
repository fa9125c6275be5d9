"""`zfsiloctl volume replicate`: a volume is sent to another server."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change
from zfsilod.ctl.client import dial
from zfsilod.ctl.parse import resource
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace


def replicate(args: Namespace) -> None:
    """Send a snapshot of a volume to another server, or end that."""
    name = resource(args.name, "volumes")
    with dial(args) as server:
        if args.end:
            request = pb.EndReplicationRequest(name=name, peer=args.to)
            change(args, server, "EndReplication", request)
            return
        request = pb.ReplicateVolumeRequest(name=name, peer=args.to, bytes_per_second=args.rate)
        change(args, server, "ReplicateVolume", request)

"""`zfsiloctl info` and `capacity`: version, roles, features and space of a daemon."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl.client import dial
from zfsilod.ctl.output.messages import as_json
from zfsilod.ctl.output.table import show_block
from zfsilod.ctl.output.volume import commas
from zfsilod.ctl.parse import bare
from zfsilod.model.host_facts import CONTROLLER_IDS
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.sizes import show_exact

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

ROLES = {"server": "server (serves volumes)", "client": "client (uses volumes)"}


def info(args: Namespace) -> None:
    """Show version, roles and features of the daemon."""
    with dial(args) as server:
        about = server.ask("GetServerInfo", pb.GetServerInfoRequest())
        where = server.where
    if args.json:
        print(as_json(about))
        return
    show_block(
        where,
        [
            ("Version", about.version),
            ("Host", bare(about.host, "hosts")),
            ("Roles", commas(ROLES.get(role, role) for role in about.roles)),
            ("Portals", commas((*about.portals, *about.nvme_portals))),
            ("NVMe ids", _controller_ids(about)),
            ("Features", commas(about.features)),
            ("Caller", about.caller),
            ("Held", "; ".join(f"{hold.sentence}: {hold.command}" for hold in about.holds)),
        ],
    )


def _controller_ids(about: Any) -> str:
    """Return the range of NVMe controller ids; "" for all, and where there is none."""
    first, last = about.nvme_cntlid_min, about.nvme_cntlid_max
    return f"{first} to {last}" if last and (first, last) != CONTROLLER_IDS else ""


def capacity(args: Namespace) -> None:
    """Show the space for volumes."""
    with dial(args) as server:
        request = pb.GetCapacityRequest(root=args.dataset)
        space = server.ask("GetCapacity", request)
    if args.json:
        print(as_json(space))
        return
    used = space.total_bytes - space.available_bytes
    share = f", {100 * used // space.total_bytes} %" if space.total_bytes else ""
    show_block(
        "",
        [
            ("Free", show_exact(space.available_bytes)),
            ("Used", f"{show_exact(used)}{share}"),
            ("Total", show_exact(space.total_bytes)),
            ("Problems", "; ".join(space.conditions)),
        ],
    )

"""`zfsiloctl info` and `capacity`: what a daemon says of itself and of its room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2 as pb

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.client import dial
from zfsilod.ctl.output.table import show_block
from zfsilod.ctl.output.volume import commas
from zfsilod.ctl.parse import bare
from zfsilod.model.sizes import show_exact

if TYPE_CHECKING:
    from argparse import Namespace

ROLES = {"server": "server (serves volumes)", "client": "client (uses volumes)"}


def info(given: Namespace) -> None:
    """Show what the daemon says of itself."""
    with dial(given) as server:
        found = server.ask(server.api.service.GetServerInfo, pb.GetServerInfoRequest())
        where = server.where
    if given.json:
        print(rpc_errors.as_json(found))
        return
    show_block(
        where,
        [
            ("Version", found.version),
            ("Host", bare(found.host, "hosts")),
            ("Roles", commas(ROLES.get(role, role) for role in found.roles)),
            ("Features", commas(found.features)),
            ("You are", found.caller),
        ],
    )


def capacity(given: Namespace) -> None:
    """Show how much room there is for volumes."""
    with dial(given) as server:
        request = pb.GetCapacityRequest(root=given.dataset)
        found = server.ask(server.api.service.GetCapacity, request)
    if given.json:
        print(rpc_errors.as_json(found))
        return
    used = found.total_bytes - found.available_bytes
    share = f", {100 * used // found.total_bytes} %" if found.total_bytes else ""
    show_block(
        "",
        [
            ("Free", show_exact(found.available_bytes)),
            ("Used", f"{show_exact(used)}{share}"),
            ("Total", show_exact(found.total_bytes)),
            ("Wrong", "; ".join(found.conditions)),
        ],
    )

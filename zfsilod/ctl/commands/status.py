"""`zfsiloctl status`: a host at a glance, and what needs somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfsilo.v1 import service_pb2 as pb

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.client import dial
from zfsilod.ctl.output.table import BAD, GOOD, clean, paint, show_block
from zfsilod.ctl.parse import bare
from zfsilod.model.sizes import show_size

if TYPE_CHECKING:
    from argparse import Namespace

STATES = ("CREATED", "PUBLISHED", "CONNECTED", "STAGED", "MOUNTED")
BAR = 20


def status(given: Namespace) -> None:
    """Show a host at a glance."""
    with dial(given) as server:
        found = server.ask(server.api.service.GetStatus, pb.GetStatusRequest())
    if given.json:
        print(rpc_errors.as_json(found))
        return
    about = found.server
    show_block(
        f"host {bare(about.host, 'hosts')} (zfsilod {about.version})",
        [
            ("Serves", _pool(found) if found.root else ""),
            ("Volumes", _counts(found.volumes, STATES)),
            ("Published", _published(found)),
            ("Operations", _counts(found.operations, sorted(found.operations)) or "none runs"),
        ],
    )
    print()
    if not found.attention:
        print(paint(GOOD, "all is well"))
        return
    print(paint(BAD, f"{found.attention_count} need attention"))
    for each in found.attention:
        name = bare(each.subject, "volumes") or "this host"
        print(f"  {clean(name)}: {clean(each.sentence)}")
        if each.command and each.command not in each.sentence:
            print(f"    try: {each.command}")
    if found.attention_count > len(found.attention):
        print(f"  and {found.attention_count - len(found.attention)} more")


def _pool(found: Any) -> str:
    """Return the root and how full it is: as a bar, and what thin volumes promise of it."""
    room = found.capacity
    if not room.total_bytes:
        return f"{found.root} (its room is not known now)"
    used = room.total_bytes - room.available_bytes
    share = used / room.total_bytes
    bar = "#" * round(BAR * share)
    text = f"{found.root} [{bar:.<{BAR}}] {share:.0%} of {show_size(room.total_bytes)}"
    promised = found.promised_bytes / room.total_bytes
    return f"{text}, thin volumes promise {promised:.1f} times that"


def _counts(counts: Any, order: Any) -> str:
    return ", ".join(
        f"{counts[name]} {name.lower().replace('_', ' ')}" for name in order if counts.get(name)
    )


def _published(found: Any) -> str:
    if not found.hosts:
        return ""
    return f"{found.publications} times; {found.hosts} hosts are known"

"""`zfsiloctl host`: the machines that volumes are published to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfsilo.v1 import host_pb2 as pb

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.change import change
from zfsilod.ctl.client import dial
from zfsilod.ctl.commands.volume import changed
from zfsilod.ctl.filters import all_of, labels_are
from zfsilod.ctl.output.table import show_block, show_table
from zfsilod.ctl.output.volume import age, commas, pairs, when
from zfsilod.ctl.parse import assignments, bare, resource
from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from argparse import Namespace

    from zfsilod.ctl.client import Server


def list_hosts(given: Namespace) -> None:
    """List the hosts that a storage host knows."""
    with dial(given) as server:
        request = pb.ListHostsRequest(filter=all_of(given.filter, *labels_are(given.label)))
        found = server.ask_all(server.api.hosts.ListHosts, request, "hosts")
    rows = [
        [h.id, h.iqn, h.nqn, commas(h.addresses), pairs(h.labels), age(h.create_time)]
        for h in found
    ]
    columns = ("NAME", "IQN", "NQN", "ADDRESSES", "LABELS", "AGE")
    rpc_errors.show_all(
        given,
        "hosts",
        found,
        name=lambda each: str(each.id),
        table=lambda: show_table(columns, rows),
    )


def show(given: Namespace) -> None:
    """Show what is known of a host."""
    with dial(given) as server:
        found = get(server, given.name)
    if given.json:
        print(rpc_errors.as_json(found))
        return
    most = str(found.max_attachments) if found.max_attachments else "any number"
    show_block(
        f"host {found.id}",
        [
            ("IQN", found.iqn),
            ("NQN", found.nqn),
            ("Addresses", commas(found.addresses)),
            ("Labels", pairs(found.labels)),
            ("Takes volumes", most),
            ("Etag", found.etag),
            ("Created", when(found.create_time)),
            ("Changed", when(found.update_time)),
        ],
    )


def add(given: Namespace) -> None:
    """Make a host known."""
    host = pb.Host(
        iqn=given.iqn or "",
        nqn=given.nqn or "",
        addresses=given.address,
        labels=assignments(given.label, "label"),
        max_attachments=given.max_attachments or 0,
    )
    request = pb.CreateHostRequest(host_id=bare(given.name, "hosts"), host=host)
    with dial(given) as server:
        change(given, server, server.changes.hosts.CreateHost, request)


def update(given: Namespace) -> None:
    """Change what was named of a host; the rest stays as it is."""
    with dial(given) as server:
        host = pb.Host(name=resource(given.name, "hosts"))
        request = pb.UpdateHostRequest(host=host, etag=given.etag)
        for field in ("iqn", "nqn", "max_attachments"):
            if getattr(given, field) is not None:
                setattr(request.host, field, getattr(given, field))
                request.update_mask.paths.append(field)
        if given.address:
            request.host.addresses.extend(given.address)
            request.update_mask.paths.append("addresses")
        if given.label:  # replaced as a whole: the etag keeps out a change in between
            now = get(server, given.name)
            request.host.labels.update(changed(dict(now.labels), given.label))
            request.etag = given.etag or now.etag
            request.update_mask.paths.append("labels")
        if not request.update_mask.paths:
            raise InvalidArgument(
                "nothing to change: name what shall be another",
                reason="USAGE",
                usage="zfsiloctl host update --help",
            )
        change(given, server, server.changes.hosts.UpdateHost, request)


def delete(given: Namespace) -> None:
    """Forget a host."""
    request = pb.DeleteHostRequest(name=resource(given.name, "hosts"), etag=given.etag)
    with dial(given) as server:
        change(given, server, server.changes.hosts.DeleteHost, request)


def get(server: Server, name: str) -> Any:
    """Return a host as it is now."""
    return server.ask(server.api.hosts.GetHost, pb.GetHostRequest(name=resource(name, "hosts")))

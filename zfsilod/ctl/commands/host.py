"""`zfsiloctl host`: the hosts that are registered with a server."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change, set_fields
from zfsilod.ctl.client import dial
from zfsilod.ctl.filters import all_of, label_filters
from zfsilod.ctl.output.messages import as_json, show_all
from zfsilod.ctl.output.table import say, show_block, show_table
from zfsilod.ctl.output.volume import commas, pairs
from zfsilod.ctl.parse import (
    assignments,
    bare,
    changed_labels,
    host_ids,
    is_removal,
    resource,
)
from zfsilod.ctl.times import age, when
from zfsilod.model.errors import InvalidArgument, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from zfsilod.ctl.client import Server


def list_hosts(args: Namespace) -> None:
    """List the registered hosts."""
    with dial(args) as server:
        request = pb.ListHostsRequest(filter=all_of(args.filter, *label_filters(args.label)))
        hosts = server.ask_all("ListHosts", request, "hosts")
    rows = [
        [
            host.id,
            host.iqn,
            host.nqn,
            commas(host.addresses),
            pairs(host.labels),
            age(host.create_time),
        ]
        for host in hosts
    ]
    columns = ("NAME", "IQN", "NQN", "ADDRESSES", "LABELS", "AGE")
    show_all(
        args,
        "hosts",
        hosts,
        name=lambda host: str(host.id),
        table=lambda: show_table(columns, rows),
    )


def show(args: Namespace) -> None:
    """Show a host."""
    with dial(args) as server:
        host = get(server, args.name)
    if args.json:
        print(as_json(host))
        return
    most = str(host.max_attachments) if host.max_attachments else "no limit"
    show_block(
        f"host {host.id}",
        [
            ("IQN", host.iqn),
            ("NQN", host.nqn),
            ("Addresses", commas(host.addresses)),
            ("Labels", pairs(host.labels)),
            ("Max volumes", most),
            ("Authority", host.authority.lower()),
            ("Machine", host.machine),
            ("Etag", host.etag),
            ("Created", when(host.create_time)),
            ("Updated", when(host.update_time)),
        ],
    )


def add(args: Namespace) -> None:
    """Register a host."""
    host = pb.Host(
        iqn=args.iqn or "",
        nqn=args.nqn or "",
        addresses=args.address,
        labels=assignments(args.label, "label"),
        max_attachments=args.max_attachments or 0,
    )
    request = pb.CreateHostRequest(host_id=bare(args.name, "hosts"), host=host)
    with dial(args) as server:
        change(args, server, "CreateHost", request)


def update(args: Namespace) -> None:
    """Change the named values of a host."""
    with dial(args) as server:
        host = pb.Host(name=resource(args.name, "hosts"))
        request = pb.UpdateHostRequest(host=host, etag=args.etag)
        fields = ("iqn", "nqn", "max_attachments")
        set_fields(request, request.host, {field: getattr(args, field) for field in fields})
        if args.address:
            request.host.addresses.extend(args.address)
            request.update_mask.append("addresses")
        if args.label:  # replaced as a whole; the etag detects a change since they were read
            current = get(server, args.name)
            request.host.labels.update(changed_labels(dict(current.labels), args.label))
            request.etag = args.etag or current.etag
            request.update_mask.append("labels")
        if args.new_machine:
            request.update_mask.append("machine")
        if not request.update_mask:
            raise InvalidArgument(
                "nothing to change; pass --iqn, --nqn, --address, --label, --max-attachments or "
                "--new-machine",
                reason="USAGE",
                usage="zfsiloctl host update --help",
            )
        change(args, server, "UpdateHost", request)
    if args.new_machine:
        name = bare(args.name, "hosts")
        say(args, f"its certificates are revoked; next: zfsiloctl pki issue host {name}")


def delete(args: Namespace) -> None:
    """Delete the registration of a host."""
    request = pb.DeleteHostRequest(name=resource(args.name, "hosts"), etag=args.etag)
    with dial(args) as server:
        change(args, server, "DeleteHost", request)


def get(server: Server, name: str) -> Any:
    """Return a host."""
    return server.ask("GetHost", pb.GetHostRequest(name=resource(name, "hosts")))


def say_unregistered(args: Namespace, server: Server, names: list[str]) -> None:
    """Name hosts that are not registered: they may join later, or are misspelt."""
    for name in host_ids([name for name in names if name != "*" and not is_removal(name)]):
        try:
            get(server, name)
        except ZfsiloError as error:
            if error.code == "NOT_FOUND":
                say(
                    args,
                    f"  host {name} is not registered: unless it is misspelt, next: "
                    f"zfsiloctl pki issue host {name}",
                )

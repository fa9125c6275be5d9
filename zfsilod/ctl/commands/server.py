"""`zfsiloctl server`: the storage hosts that this host uses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilo.v1 import host_pb2

from zfsilod.ctl import ip_filter, paths, rpc_errors, server_files
from zfsilod.ctl.client import Server
from zfsilod.ctl.output.table import say, show_table
from zfsilod.ctl.parse import bare
from zfsilod.ctl.require_local import check_here
from zfsilod.host.iscsi import name_in
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, ZfsiloError
from zfsilod.model.validation import check_id

if TYPE_CHECKING:
    from argparse import Namespace

    from zfsilod.security.join_file import Access

WHAT = "servers are joined, listed and forgotten"
NOT_A_HOSTS = ("NO_HOST", "ROLE")


def list_servers(given: Namespace) -> None:
    """List the servers that this host knows."""
    check_here(given, WHAT)
    known = server_files.names()
    if given.quiet:
        sys.stdout.writelines(f"{name}\n" for name in known)
        return
    found = [server_files.read(name) for name in known]
    if given.json:
        print(
            rpc_errors.dumps(
                {"servers": [{"name": each.name, "address": each.address} for each in found]}
            )
        )
    else:
        show_table(("NAME", "ADDRESS"), [[each.name, each.address] for each in found])


def join(given: Namespace) -> None:
    """Get to know a server: register with it, and keep how it is reached."""
    from zfsilod.model.names import split_address

    check_here(given, WHAT)
    known = server_files.from_join(Path(given.file))
    known.name = check_id(given.local_name or known.name, "server name")
    _refuse_another(known)
    host = register(known, given.timeout, given.iqn or own_iqn())
    path = server_files.write(known)
    ip_filter.let_out(split_address(known.address)[0])
    if given.json:
        print(rpc_errors.dumps({"server": {"name": known.name, "address": known.address}}))
    elif not given.quiet:
        print(f"{known.name} ({known.address}) knows this host as {host}; kept in {path}")
        if given.file != server_files.STDIN:
            print(f"  now delete {given.file}")


def forget(given: Namespace) -> None:
    """Forget a server; what is connected from it stays so until it is disconnected."""
    check_here(given, WHAT)
    server_files.forget(given.name)
    say(given, f"{given.name}: forgotten")


def register(known: Access, timeout_s: float | None, iqn: str) -> str:
    """Tell a server what this host is called on the wire; return its id there."""
    request = host_pb2.RegisterHostRequest(host=host_pb2.Host(iqn=iqn))
    with server_files.channel_to(known) as channel:
        server = Server(channel, f"{known.name} ({known.address})", timeout_s)
        try:
            answer = server.ask(server.api.hosts.RegisterHost, request)
        except ZfsiloError as error:
            if error.reason not in NOT_A_HOSTS:
                raise
            raise FailedPrecondition(
                f"the join file for {known.name} is a person's, not a host's: use it with "
                f"zfsiloctl -H FILE, or make one there with zfsiloctl pki issue host",
                reason="NOT_A_HOSTS",
            ) from error
    return bare(answer.host.name, "hosts")


def own_iqn() -> str:
    """Return this host's name as an iSCSI initiator."""
    path = paths.initiator()
    try:
        text = path.read_text()
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be read: install open-iscsi, use sudo, or give --iqn", reason="NO_IQN"
        ) from error
    name = name_in(text)
    if not name:
        raise FailedPrecondition(
            f"{path} names no InitiatorName: give --iqn, or make one with iscsi-iname",
            reason="NO_IQN",
        )
    return name


def _refuse_another(known: Access) -> None:
    """Refuse a name that stands for another server; the same one may come with a new identity."""
    if known.name not in server_files.names():
        return
    if server_files.read(known.name).authority.strip() != known.authority.strip():
        raise AlreadyExists(
            f"this host knows another server {known.name}: give this one a name with --as, or "
            f"zfsiloctl server forget {known.name}",
            reason="NAME_TAKEN",
            server=known.name,
        )

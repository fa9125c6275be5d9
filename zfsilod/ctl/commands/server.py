"""`zfsiloctl join` and `server`: the servers that this host can use."""

from __future__ import annotations

import sys
from pathlib import Path

from zfsilod.ctl import ip_filter, paths, server_files, volume_files
from zfsilod.ctl import messages as pb
from zfsilod.ctl.client import Server
from zfsilod.ctl.output.messages import dumps
from zfsilod.ctl.output.table import say, show_table
from zfsilod.ctl.parse import bare
from zfsilod.ctl.require_local import check_root
from zfsilod.host.kernel_modules import has_module
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import parse_initiator_name
from zfsilod.model.validation import check_id

if TYPE_CHECKING:
    from argparse import Namespace

    from zfsilod.security.join_file import Access

PEER = "replica"  # the role of a server that sends volumes to another one
NOT_A_HOST = ("NO_HOST", "ROLE")  # of a join file for a user


def list_servers(args: Namespace) -> None:
    """List the known servers."""
    check_root(args, "server list")
    names = server_files.names()
    if args.quiet:
        sys.stdout.writelines(f"{name}\n" for name in names)
        return
    servers = [server_files.read(name) for name in names]
    if args.json:
        print(dumps({"servers": [_plain(server) for server in servers]}))
    else:
        show_table(("NAME", "ADDRESS"), [[server.name, server.address] for server in servers])


def join(args: Namespace) -> None:
    """Register with a server, and write its file."""
    from zfsilod.model.names import split_address

    check_root(args, "join")
    access = server_files.from_join(Path(args.file))
    access.name = check_id(args.local_name or access.name, "server name")
    known = server_files.read(access.name) if access.name in server_files.names() else None
    if known is not None and known.authority.strip() != access.authority.strip():
        raise AlreadyExists(
            f"another server named {access.name} is known; name this one with --as, or remove "
            f"the other with zfsiloctl server forget {access.name}",
            reason="NAME_TAKEN",
            server=access.name,
        )
    host = _register(access, args)
    path = server_files.write(access)
    ip_filter.allow(split_address(access.address)[0])
    if args.json:
        print(dumps({"server": _plain(access)}))
    elif not args.quiet:
        role = f"as host {host}" if host else "as its peer, to replicate volumes to it"
        print(f"joined {access.name} ({access.address}) {role}; saved in {path}")
        if args.file != server_files.STDIN:
            print(f"  next: delete {args.file}")
        if units := [
            f"zfsilo-volume@{name}.service" for name in volume_files.of_server(access.name)
        ]:
            print(f"  next, if its volumes are down: systemctl start {' '.join(units)}")


def _register(access: Access, args: Namespace) -> str:
    """Register this host, and return its id there; "": it is a peer, which is not a host there."""
    try:
        iqn = args.iqn or own_iqn()
    except FailedPrecondition:
        if not _is_peer(access, args.timeout):
            raise
        return ""
    return register(access, args.timeout, iqn)


def _is_peer(access: Access, timeout_s: float | None) -> bool:
    """Tell whether a join file is one of the role replica; nothing is registered."""
    request = pb.RegisterHostRequest(validate_only=True)
    server = Server(server_files.channel_to(access), access.name, timeout_s)
    try:
        server.ask("RegisterHost", request)
    except ZfsiloError as error:
        return error.facts.get("role") == PEER
    return False


def forget(args: Namespace) -> None:
    """Remove the file of a server; its volumes stay connected until they are disconnected."""
    check_root(args, "server forget")
    server_files.forget(args.name)
    say(args, f"{args.name}: removed")


def register(access: Access, timeout_s: float | None, iqn: str) -> str:
    """Register this host's initiator name with a server, and return the id of this host there.

    "": the join file is one of the role replica, which is not a host there.
    """
    request = pb.RegisterHostRequest(host=pb.Host(iqn=iqn))
    channel = server_files.channel_to(access)
    server = Server(channel, f"{access.name} ({access.address})", timeout_s)
    try:
        answer = server.ask("RegisterHost", request)
    except ZfsiloError as error:
        if error.facts.get("role") == PEER:
            return ""
        if error.reason not in NOT_A_HOST:
            raise
        raise FailedPrecondition(
            f"the join file for {access.name} is for a user, not for a host; use it with "
            f"zfsiloctl -H FILE, or issue one for this host with zfsiloctl pki issue host "
            f"on {access.name}",
            reason="NOT_A_HOSTS",
        ) from error
    return bare(answer.host.name, "hosts")


def simulated_iqn() -> str:
    """Return the initiator name of the zfsilod of a simulation; "" on a real host."""
    if not paths.simulation():
        return ""
    from zfsilod.host.fake.iscsi import simulated_initiator

    return simulated_initiator(paths.state().resolve() / "facts.json")


def own_iqn() -> str:
    """Return the iSCSI initiator name of this host; "" for a host that has only NVMe/TCP."""
    if name := simulated_iqn():
        return name
    path = paths.initiator()
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and has_module("nvme_tcp"):
            return ""
        raise FailedPrecondition(
            f"cannot read {path}; install open-iscsi, use sudo, or pass --iqn", reason="NO_IQN"
        ) from error
    name = parse_initiator_name(text)
    if not name:
        raise FailedPrecondition(
            f"{path} has no InitiatorName; set it (see iscsi-iname), or pass --iqn",
            reason="NO_IQN",
        )
    return name


def _plain(access: Access) -> dict[str, str]:
    return {"name": access.name, "address": access.address}

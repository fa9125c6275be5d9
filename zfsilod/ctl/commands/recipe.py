"""`zfsiloctl volume recipe`: how a host without zfsilo connects to a volume."""

from __future__ import annotations

import sys

from zfsilod.ctl import messages as pb
from zfsilod.ctl.client import dial
from zfsilod.ctl.output.messages import dumps
from zfsilod.ctl.output.recipe import default_tool, fits
from zfsilod.ctl.output.recipe import recipe as lines_of
from zfsilod.ctl.output.table import clean
from zfsilod.ctl.parse import resource
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import transport_of

if TYPE_CHECKING:
    from argparse import Namespace


def recipe(args: Namespace) -> None:
    """Print the commands for one host; its secrets are asked for last, since they come once."""
    request = pb.FetchConnectionRequest(
        name=resource(args.name, "volumes"),
        host=resource(args.host, "hosts"),
        view=pb.CONNECTION_VIEW_NAMES,
    )
    with dial(args) as server:
        connection = server.ask("FetchConnection", request)
        tool = args.tool or default_tool(connection.target)
        if not fits(tool, connection.target):
            transport = transport_of(connection.target).lower()
            raise InvalidArgument(
                f"{args.name} is published over {transport}, which {tool} "
                f"does not speak: use --for {default_tool(connection.target)}"
            )
        if args.secrets and tool != "libvirt":
            request.view = pb.CONNECTION_VIEW_ONCE
            connection = server.ask("FetchConnection", request)
    lines = [clean(line) for line in lines_of(connection, tool)]
    if args.json:
        print(dumps({"tool": tool, "lines": lines}))
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines)

"""`zfsiloctl machine`: ends the hold of a store on another machine than its own."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl import paths, server_files
from zfsilod.ctl.client import dial
from zfsilod.ctl.confirm import confirmed
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.table import BAD, clean, paint, say
from zfsilod.ctl.require_local import check_root
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

MOVED = "The disk was moved, and no other machine runs this host any more?"
CLONED = (
    "This machine is a copy? It forgets the attachments, publications, certificates, tokens and "
    "servers of the original."
)


def moved(args: Namespace) -> int:
    """Bind the store to this machine, and keep everything."""
    check_root(args, "machine moved")
    if not args.yes and not confirmed(MOVED):
        return FAILED
    _bind(args, cloned=False)
    say(args, "this store belongs to this machine; volumes are restored now")
    say(args, "  on its servers:    zfsiloctl host update NAME --new-machine")
    return 0


def cloned(args: Namespace) -> int:
    """Bind the store to this machine, and forget what belongs to the original."""
    check_root(args, "machine cloned")
    if not args.yes and not confirmed(CLONED):
        return FAILED
    _bind(args, cloned=True)
    for path in (paths.state() / "tls").glob("*"):
        path.unlink()
    for name in server_files.names():
        server_files.forget(name)
    say(args, "this host has an identity of its own; what the original had is forgotten")
    say(args, "  host id:           hostnamectl hostname NAME, or host_id in zfsilod.toml")
    say(args, "  initiator name:    iscsi-iname, into /etc/iscsi/initiatorname.iscsi")
    say(args, "  then:              systemctl restart zfsilod.service")
    say(args, "  on a server:       zfsiloctl pki init")
    say(args, "  on a client:       zfsiloctl join FILE, with a join file of its own")
    return 0


def _bind(args: Namespace, *, cloned: bool) -> None:
    with dial(args) as daemon:
        daemon.read_s = daemon.change_s
        request = pb.BindMachineRequest(cloned=cloned)
        about = daemon.ask("BindMachine", request)
    for hold in about.holds:
        print(f"{paint(BAD, 'held')}: {clean(hold.sentence)}")
        print(f"  try: {hold.command}")

"""`zfsiloctl volume rotate-key` and `recovery-key`: the keys of encrypted volumes."""

from __future__ import annotations

import sys

from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change
from zfsilod.ctl.client import dial
from zfsilod.ctl.parse import resource
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace


def rotate_key(args: Namespace) -> None:
    """Replace the key of an encrypted volume."""
    request = pb.RotateVolumeKeyRequest(name=resource(args.name, "volumes"), etag=args.etag)
    with dial(args) as server:
        change(args, server, "RotateVolumeKey", request)


def recovery_key(args: Namespace) -> None:
    """Show the key of an encrypted volume on the terminal."""
    if args.json or not sys.stdout.isatty():  # a file or a log would keep it
        raise InvalidArgument(
            "the recovery key is shown on a terminal only",
            reason="USAGE",
            usage="zfsiloctl volume recovery-key --help",
        )
    request = pb.ExportVolumeKeyRequest(name=resource(args.name, "volumes"))
    with dial(args) as server:
        exported = server.ask("ExportVolumeKey", request)
    print(f"recovery key of {exported.dataset}:\n\n  {exported.recovery_key}\n")
    print("Keep it away from this server: it is not shown again. Where zfsilo has no key any more:")
    print(f"  xxd -r -p | zfs load-key {exported.dataset}    and paste it, then Enter and Ctrl-D")

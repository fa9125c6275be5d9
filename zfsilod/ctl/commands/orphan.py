"""`zfsiloctl orphan` and `adopt`: resources with zfsilo's marks but without a record."""

from __future__ import annotations

import sys

from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change, send
from zfsilod.ctl.client import dial
from zfsilod.ctl.confirm import confirmed
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.messages import as_json, show_all
from zfsilod.ctl.output.table import clean, show_table
from zfsilod.ctl.parse import check_one_or_all
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from zfsilod.ctl.client import Server
    from zfsilod.ctl.messages import Message

PUT_BACK = "put-back"  # kind of the operation of an adoption under an existing record
TAKE_OVER = "Take the pool over from the store that claimed it? No other host may use it any more."


def list_orphans(args: Namespace) -> None:
    """List the orphans of a host."""
    with dial(args) as server:
        server.read_s = server.change_s  # it scans the whole pool
        request = pb.ListOrphansRequest()
        orphans = server.ask_all("ListOrphans", request, "orphans")
    rows = [(orphan.name, orphan.text, ", ".join(orphan.users)) for orphan in orphans]
    show_all(
        args,
        "orphans",
        orphans,
        name=lambda orphan: clean(orphan.name),
        table=lambda: show_table(("NAME", "DESCRIPTION", "USED BY"), rows),
    )


def remove(args: Namespace) -> int:
    """Remove orphans, after confirmation."""
    request = pb.RemoveOrphansRequest(names=args.name, force=args.force)
    with dial(args) as server:
        method = "RemoveOrphans"
        if not (args.yes or args.dry_run):
            check = pb.RemoveOrphansRequest(names=args.name, force=args.force, validate_only=True)
            send(server, method, check, follow=False)  # raises before the question is asked
            if not confirmed(f"Remove {clean(', '.join(args.name))} and all data in it?"):
                return FAILED
        change(args, server, method, request)
    return 0


def adopt(args: Namespace) -> int:
    """Create the record of one zvol, or of all zvols with zfsilo's marks.

    It asks before a zvol is put back under an existing record.
    """
    check_one_or_all(args.dataset, "DATASET", everything=args.all)
    if args.take_over and not args.all:
        raise InvalidArgument(
            "--take-over needs --all", reason="USAGE", usage="zfsiloctl adopt --help"
        )
    with dial(args) as server:
        if args.dataset:
            request = pb.AdoptVolumeRequest(
                dataset=args.dataset, volume_id=args.id, accept_copy=args.accept_copy
            )
            if not (args.yes or args.dry_run) and not _agreed(server, request):
                return FAILED
            change(args, server, "AdoptVolume", request)
            return 0
        if args.no_wait:
            raise InvalidArgument(
                "--no-wait cannot be combined with --all",
                reason="USAGE",
                usage="zfsiloctl adopt --help",
            )
        server.read_s = server.change_s
        ask_first = args.take_over and not (args.yes or args.dry_run)
        if ask_first and not confirmed(TAKE_OVER):
            return FAILED
        everything = pb.AdoptVolumesRequest(take_over=args.take_over, validate_only=args.dry_run)
        adopted = server.ask("AdoptVolumes", everything)
    word = "would be adopted" if args.dry_run else "adopted"
    if args.json:
        print(as_json(adopted))
    else:
        lines = [f"{name}: {word}" for name in (*adopted.volumes, *adopted.snapshots)]
        lines += [f"{name}: {word}, in the trash" for name in adopted.in_trash]
        lines += [f"{name}: {complaint}" for name, complaint in sorted(adopted.complaints.items())]
        lines += [f"note: {sentence}" for sentence in adopted.unknown]
        if not (lines or args.quiet):
            lines = ["nothing to adopt"]
        sys.stdout.writelines(f"{clean(line)}\n" for line in lines)
    return FAILED if adopted.complaints else 0


def _agreed(server: Server, request: Message) -> bool:
    """Ask whether a zvol is put back under its record; an adoption without a record needs no yes.

    Raises the error of the request before the question.
    """
    check = pb.AdoptVolumeRequest()
    check.CopyFrom(request)
    check.validate_only = True
    operation = send(server, "AdoptVolume", check, follow=False).operation
    if operation.kind != PUT_BACK or not operation.actions:
        return True
    title = clean(operation.title)
    return confirmed(f"{title[0].upper()}{title[1:]}?")

"""`zfsiloctl rotate-secrets`: replace the CHAP secrets of publications."""

from __future__ import annotations

import sys

from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import ask, change
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.messages import dumps
from zfsilod.ctl.output.table import clean
from zfsilod.ctl.parse import bare, resource
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from zfsilod.ctl.messages import Message


def rotate_secrets(args: Namespace) -> int:
    """Replace the secrets of one volume, or of all."""
    with dial(args) as server:
        if not args.volume:
            return _rotate_all(args, server)
        change(args, server, "RotateSecrets", _request(args, args.volume))
    return 0


def _rotate_all(args: Namespace, server: Server) -> int:
    """Replace the secrets of every publication; continue after a failure."""
    publications = server.ask_all("ListPublications", pb.ListPublicationsRequest(), "publications")
    answers, failed = [], False
    for volume in dict.fromkeys(bare(entry.volume, "volumes") for entry in publications):
        try:
            answers.append(ask(args, server, "RotateSecrets", _request(args, volume)))
        except ZfsiloError as error:
            failed = True
            sys.stderr.write(f"zfsiloctl: {volume}: {clean(error.message)}\n")
    if args.json:
        print(dumps({"operations": [answer["operation"] for answer in answers]}))
    elif not (publications or args.quiet):
        print("nothing is published")
    return FAILED if failed else 0


def _request(args: Namespace, volume: str) -> Message:
    request: Message = pb.RotateSecretsRequest(volume=resource(volume, "volumes"), force=args.force)
    if args.host:
        request.host = resource(args.host, "hosts")
    return request

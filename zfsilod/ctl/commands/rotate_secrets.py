"""`zfsiloctl rotate-secrets`: replace the CHAP secrets of publications."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl.change import ask, change
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.messages import dumps
from zfsilod.ctl.output.table import clean
from zfsilod.ctl.parse import bare, resource
from zfsilod.model.errors import ZfsiloError

if TYPE_CHECKING:
    from argparse import Namespace


def rotate_secrets(args: Namespace) -> int:
    """Replace the secrets of one volume, or of all."""
    with dial(args) as server:
        if not args.volume:
            return _rotate_all(args, server)
        change(args, server, server.changes.service.RotateSecrets, _request(args, args.volume))
    return 0


def _rotate_all(args: Namespace, server: Server) -> int:
    """Replace the secrets of every publication; continue after a failure."""
    publications = server.ask_all(
        server.api.volumes.ListPublications, pb.ListPublicationsRequest(), "publications"
    )
    answers, failed = [], False
    for volume in dict.fromkeys(bare(entry.volume, "volumes") for entry in publications):
        try:
            answers.append(
                ask(args, server, server.changes.service.RotateSecrets, _request(args, volume))
            )
        except ZfsiloError as error:
            failed = True
            sys.stderr.write(f"zfsiloctl: {volume}: {clean(error.message)}\n")
    if args.json:
        print(dumps({"operations": [answer["operation"] for answer in answers]}))
    elif not (publications or args.quiet):
        print("nothing is published")
    return FAILED if failed else 0


def _request(args: Namespace, volume: str) -> service_pb2.RotateSecretsRequest:
    request = service_pb2.RotateSecretsRequest(volume=resource(volume, "volumes"), force=args.force)
    if args.host:
        request.host = resource(args.host, "hosts")
    return request

"""`zfsiloctl rotate-secrets`: new CHAP secrets for what is published."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.change import ask, change
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.table import clean
from zfsilod.ctl.parse import bare, resource
from zfsilod.model.errors import ZfsiloError

if TYPE_CHECKING:
    from argparse import Namespace


def rotate_secrets(given: Namespace) -> int:
    """Make new secrets for one volume, or for all."""
    with dial(given) as server:
        if not given.volume:
            return _rotate_all(given, server)
        change(given, server, server.changes.service.RotateSecrets, _request(given, given.volume))
    return 0


def _rotate_all(given: Namespace, server: Server) -> int:
    """Make new secrets for all that is published; one failure stops no other."""
    listed = server.ask_all(
        server.api.volumes.ListPublications, pb.ListPublicationsRequest(), "publications"
    )
    made, failed = [], False
    for volume in dict.fromkeys(bare(each.volume, "volumes") for each in listed):
        try:
            made.append(
                ask(given, server, server.changes.service.RotateSecrets, _request(given, volume))
            )
        except ZfsiloError as error:
            failed = True
            sys.stderr.write(f"zfsiloctl: {volume}: {clean(error.message)}\n")
    if given.json:
        print(rpc_errors.dumps({"operations": [each["operation"] for each in made]}))
    elif not (listed or given.quiet):
        print("nothing is published: there are no secrets")
    return FAILED if failed else 0


def _request(given: Namespace, volume: str) -> service_pb2.RotateSecretsRequest:
    request = service_pb2.RotateSecretsRequest(
        volume=resource(volume, "volumes"), force=given.force
    )
    if given.host:
        request.host = resource(given.host, "hosts")
    return request

"""`zfsiloctl rotate-secrets`: new CHAP secrets for what is published."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl.amount import bare, resource
from zfsilod.ctl.change import change
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.refusal import FAILED
from zfsilod.ctl.table import clean
from zfsilod.errors import ZfsiloError

if TYPE_CHECKING:
    from argparse import Namespace


def rotate_secrets(given: Namespace) -> int:
    """Make new secrets for one volume, or for all: there one failure stops no other."""
    with dial(given) as server:
        if given.volume:
            _rotate(given, server, given.volume)
            return 0
        listed = server.ask_all(
            server.api.volumes.ListPublications, pb.ListPublicationsRequest(), "publications"
        )
        failed = False
        for volume in dict.fromkeys(bare(each.volume, "volumes") for each in listed):
            try:
                _rotate(given, server, volume)
            except ZfsiloError as error:
                failed = True
                sys.stderr.write(f"zfsiloctl: {volume}: {clean(error.message)}\n")
    return FAILED if failed else 0


def _rotate(given: Namespace, server: Server, volume: str) -> None:
    request = service_pb2.RotateSecretsRequest(
        volume=resource(volume, "volumes"), force=given.force
    )
    if given.host:
        request.host = resource(given.host, "hosts")
    change(given, server, server.changes.service.RotateSecrets, request)

"""Refusals of requests that an older zfsilod would not understand: it drops unknown fields."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.model.features import TLS, check_feature
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.ctl.client import Server


def check_tls(server: Server, *, wanted: bool) -> None:
    """Raise FailedPrecondition (OLDER_VERSION) if TLS is wanted of a zfsilod that has none."""
    if wanted:
        info = server.ask("GetServerInfo", pb.GetServerInfoRequest())
        check_feature(info.features, TLS, server.where)

"""Who calls over gRPC: identities, and bearer tokens. What they may is in roles.py.

A unix peer is known by its user and groups, one of the socket for nodes by that alone, a TCP peer
by its certificate (pki.py) or by a bearer token, of which we keep only the digest. A host sees and
touches only what concerns it: `shown` and `own_host`; a node what is its own: node.py.
"""

from __future__ import annotations

import grp
import hashlib
import hmac
import os
import re
import secrets
import time
from typing import TYPE_CHECKING

from zfsilod.model.errors import InvalidArgument, PermissionDenied, Unauthenticated
from zfsilod.model.record import Record
from zfsilod.model.records import Token
from zfsilod.model.ulid import new_ulid
from zfsilod.requests.request import check_id
from zfsilod.security.authorization import READERS, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.gateway.sockets import Peer
    from zfsilod.security.certificates import Certified
    from zfsilod.storage.volume_view import VolumeView

GROUP = "zfsilo"
SCHEME = "Bearer "
REVOKED = "BAD_CERTIFICATE"
TOKEN = re.compile(r"zfsilo-([0-9a-hjkmnp-tv-z]{26})-[0-9a-f]{64}")


class Caller(Record):
    """An identity: what it may, who it is, and where it came from."""

    role: Role
    subject: str
    origin: str
    local: bool = False
    certificate: Certified | None = None

    def __str__(self) -> str:
        unix = self.local and self.role == "admin"
        who = self.subject if unix else f"{self.role} {self.subject}"
        return f"{who} ({self.origin})"


class Callers:
    """Tells who a peer is."""

    def __init__(
        self, find_token: Callable[[str], Token | None], is_revoked: Callable[[str], bool]
    ) -> None:
        self._find_token = find_token
        self._is_revoked = is_revoked
        self.group = _group_id(GROUP)
        self._own_uid = os.getuid()  # root; or whoever runs a simulation

    def of(self, peer: Peer, authorization: str) -> Caller:
        """Return the identity of a peer, else raise PermissionDenied or Unauthenticated."""
        if peer.kind == "node":
            return Caller(role="node", subject=f"uid {peer.uid}", origin="csi socket", local=True)
        if peer.kind == "unix":
            return self._of_user(peer)
        if authorization:  # whoever sends one means it, certificate or not
            return self._of_token(authorization, peer.address)
        if peer.certificate is None:
            raise Unauthenticated(
                "neither a certificate (zfsiloctl pki issue) nor a bearer token (zfsiloctl token "
                "create)",
                reason="NO_IDENTITY",
            )
        return self._of_certificate(peer.certificate, peer.address)

    def _of_user(self, peer: Peer) -> Caller:
        if peer.uid in (0, self._own_uid) or self.group in peer.groups:
            return Caller(role="admin", subject=f"uid {peer.uid}", origin="unix", local=True)
        raise PermissionDenied(
            f"uid {peer.uid} is neither root nor in the group {GROUP}", reason="NOT_IN_GROUP"
        )

    def _of_certificate(self, found: Certified, address: str) -> Caller:
        """Look at every call: a connection outlives a revocation, and a certificate's days."""
        if self._is_revoked(found.fingerprint):
            raise Unauthenticated(f"the certificate of {found.identity} is revoked", reason=REVOKED)
        if found.not_after <= time.time():
            raise Unauthenticated(f"the certificate of {found.identity} has ended", reason=REVOKED)
        identity = found.identity
        role = "host" if identity.kind == "host" else check_role(identity.role)
        return Caller(
            role=role,
            subject=identity.id,
            certificate=found,
            origin=f"certificate {found.fingerprint[:16]}, {address}",
        )

    def _of_token(self, authorization: str, address: str) -> Caller:
        text = authorization.removeprefix(SCHEME)
        found = TOKEN.fullmatch(text) if authorization.startswith(SCHEME) else None
        token = self._find_token(found[1]) if found else None
        # That there is no such id may show in the time: ids are no secrets.
        if token is None or not hmac.compare_digest(digest_of(text), token.digest):
            raise Unauthenticated("the bearer token is not known here", reason="BAD_TOKEN")
        if token.expires_at and token.expires_at <= time.time():
            raise Unauthenticated("the bearer token has ended", reason="BAD_TOKEN")
        return Caller(
            role=check_role(token.role),
            subject=token.subject,
            origin=f"token {token.id}, {address}",
        )


def new_token(role: Role, subject: str, *, lasts_s: int = 0) -> tuple[Token, str]:
    """Make a token for a role: what is kept of it, and the text that is shown once."""
    check_role(role)
    check_id(subject, "name of a token's holder")
    token_id = new_ulid()
    text = f"zfsilo-{token_id}-{secrets.token_hex(32)}"
    token = Token(
        id=token_id,
        digest=digest_of(text),
        role=role,
        subject=subject,
        created_at=int(time.time()),
        expires_at=int(time.time()) + lasts_s if lasts_s else 0,
    )
    return token, text


def digest_of(token: str) -> str:
    """Return what is kept of a token's text."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def check_role(role: str) -> Role:
    """Return a role that a person or script may have, else raise InvalidArgument.

    Hosts have certificates only: they set names on the wire.
    """
    match role:
        case "admin" | "controller" | "reader":
            return role
    raise InvalidArgument(
        f"{role[:40]!r} is no role: {', '.join(READERS[:-1])} or {READERS[-1]}", reason="BAD_ROLE"
    )


def shown(caller: Caller, found: VolumeView) -> VolumeView | None:
    """Return what the caller is shown of a volume; a host is shown what concerns it, or None."""
    if caller.role != "host":
        return found
    own = tuple(each for each in found.publications if each.host == caller.subject)
    if found.volume is None:
        return None
    hosts = tuple(each for each in found.volume.hosts if each in ("*", caller.subject))
    if not own and not hosts:
        return None
    return found.but(volume=found.volume.but(hosts=hosts), publications=own, attachment=None)


def own_host(caller: Caller, asked: str) -> str:
    """Return the host that a request is about: a host speaks for itself only."""
    if caller.role != "host":
        if not asked:
            raise InvalidArgument("the request names no host", reason="NO_HOST")
        return asked
    if asked not in ("", caller.subject):
        raise PermissionDenied(
            f"{caller} may not speak for host {asked[:128]}", reason="OTHER_HOST"
        )
    return caller.subject


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return -1

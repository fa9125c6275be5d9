"""Authentication: the caller behind a peer, and bearer tokens.

A unix peer is identified by its user and groups, a peer of the CSI socket by that socket alone, a
TCP peer by its certificate (certificates.py) or by a bearer token, of which only the SHA-256 digest
is stored. The methods that each role may call are in authorization.py.
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
from zfsilod.model.identity import Caller
from zfsilod.model.records import Token
from zfsilod.model.ulid import ULID, new_ulid
from zfsilod.model.validation import check_id
from zfsilod.security.authorization import READERS
from zfsilod.security.credentials import REVOKED

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.identity import Certified, Peer, Role

GROUP = "zfsilo"
SCHEME = "Bearer "
TOKEN = re.compile(rf"zfsilo-({ULID})-[0-9a-f]{{64}}")


class Callers:
    """Identifies the caller behind a peer."""

    def __init__(
        self, find_token: Callable[[str], Token | None], is_revoked: Callable[[Certified], bool]
    ) -> None:
        self._find_token = find_token
        self._is_revoked = is_revoked
        try:
            self.group = grp.getgrnam(GROUP).gr_gid
        except KeyError:
            self.group = -1
        self._own_uid = os.getuid()  # root, or the user that runs a simulation

    def of(self, peer: Peer, authorization: str) -> Caller:
        """Return the caller. Raises PermissionDenied or Unauthenticated."""
        if peer.kind == "node":
            return Caller(role="node", subject=f"uid {peer.uid}", origin="csi socket", local=True)
        if peer.kind == "unix":
            return self._of_user(peer)
        if authorization:  # a token takes precedence over a certificate
            return self._of_token(authorization, peer.address)
        if peer.certificate is None:
            raise without_identity()
        return self._of_certificate(peer.certificate, peer.address)

    def check_new(self, peer: Peer, digest: str) -> None:
        """Check the peer of a new TCP connection; `digest`: of its token. Raises Unauthenticated.

        Nothing of what it sends is parsed in this process before.
        """
        if peer.certificate is None:
            self._valid_token(peer.token, digest)
        else:
            self._check_certificate(peer.certificate)

    def check(self, peer: Peer) -> None:
        """Check that a TCP peer still has a valid certificate or token. Raises Unauthenticated."""
        if peer.certificate is None:
            _check_expiry(self._find_token(peer.token))
        else:
            self._check_certificate(peer.certificate)

    def _of_user(self, peer: Peer) -> Caller:
        if peer.uid in (0, self._own_uid) or self.group in peer.groups:
            return Caller(role="admin", subject=f"uid {peer.uid}", origin="unix", local=True)
        raise PermissionDenied(
            f"uid {peer.uid} is neither root nor in the group {GROUP}", reason="NOT_IN_GROUP"
        )

    def _of_certificate(self, certified: Certified, address: str) -> Caller:
        """Checked at every call: a connection may outlive its certificate or a revocation."""
        self._check_certificate(certified)
        identity = certified.identity
        return Caller(
            role="host" if identity.kind == "host" else check_role(identity.role),
            subject=identity.id,
            certificate=certified,
            origin=f"certificate {certified.fingerprint[:16]}, {address}",
        )

    def _check_certificate(self, certified: Certified) -> None:
        identity = certified.identity
        if self._is_revoked(certified):
            raise Unauthenticated(f"certificate for {identity} is revoked", reason=REVOKED)
        if certified.not_after <= time.time():
            raise Unauthenticated(f"certificate for {identity} has expired", reason=REVOKED)

    def _of_token(self, authorization: str, address: str) -> Caller:
        token = self._valid_token(*parse_token(authorization))
        return Caller(
            role=check_role(token.role),
            subject=token.subject,
            token=token.id,
            origin=f"token {token.id}, {address}",
        )

    def _valid_token(self, token_id: str, digest: str) -> Token:
        token = self._find_token(token_id) if token_id else None
        # The time taken may show that an id does not exist: ids are not secret.
        if token is None or not hmac.compare_digest(digest, token.digest):
            raise unknown_token()
        return _check_expiry(token)


def _check_expiry(token: Token | None) -> Token:
    if token is None:
        raise unknown_token()
    if token.expires_at and token.expires_at <= time.time():
        raise Unauthenticated(
            f"bearer token {token.id} for {token.subject} has expired", reason="BAD_TOKEN"
        )
    return token


def parse_token(authorization: str) -> tuple[str, str]:
    """Return the id and the digest of the token in a header. Raises Unauthenticated."""
    if not authorization:
        raise without_identity()
    text = authorization.removeprefix(SCHEME)
    match = TOKEN.fullmatch(text) if authorization.startswith(SCHEME) else None
    if match is None:
        raise unknown_token()
    return match[1], digest_of(text)


def unknown_token() -> Unauthenticated:
    """Return the error for a token that does not exist, or is malformed."""
    return Unauthenticated("unknown bearer token", reason="BAD_TOKEN")


def without_identity() -> Unauthenticated:
    """Return the error for a caller without any credentials."""
    return Unauthenticated(
        "no certificate and no bearer token; create one with zfsiloctl pki issue or "
        "zfsiloctl token create on the server",
        reason="NO_IDENTITY",
    )


def new_token(role: Role, subject: str, *, lasts_s: int = 0) -> tuple[Token, str]:
    """Create a token: the record to store, and the text that is shown once. 0: no expiry."""
    check_role(role)
    check_id(subject, "token holder")
    token_id = new_ulid()
    now = int(time.time())
    text = f"zfsilo-{token_id}-{secrets.token_hex(32)}"
    token = Token(
        id=token_id,
        digest=digest_of(text),
        role=role,
        subject=subject,
        created_at=now,
        expires_at=now + lasts_s if lasts_s else 0,
    )
    return token, text


def digest_of(token: str) -> str:
    """Return the SHA-256 of a token's text, in hex."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def check_role(role: str) -> Role:
    """Return a role that a token or a user's certificate may have, else raise InvalidArgument.

    Hosts authenticate with certificates only, since their names are used on the wire.
    """
    match role:
        case "admin" | "controller" | "reader" | "replica":
            return role
    raise InvalidArgument(
        f"invalid role {role[:40]!r}; use {', '.join(READERS)} or replica",
        reason="BAD_ROLE",
    )

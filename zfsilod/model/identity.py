"""Identities: roles, the subject of a certificate, the peer of a connection, the caller."""

from __future__ import annotations

from typing import Literal

from zfsilod.model.errors import InvalidArgument, PermissionDenied
from zfsilod.model.record import Record

IMPORTED = "imported"
"""Of identities of imported authorities: host/a and imported/host/a are two identities."""

Role = Literal["admin", "controller", "host", "node", "reader", "replica"]
PeerKind = Literal["unix", "node", "tcp"]


class Identity(Record):
    """The subject of a certificate."""

    kind: Literal["host", "user"]
    id: str
    role: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


class Certified(Record):
    """An identity as a certificate proved it, on one connection."""

    identity: Identity
    fingerprint: str  # SHA-256 of the certificate, hex: revocations name it
    not_after: int
    own: bool  # signed by this host's authority, which may renew it

    @property
    def subject(self) -> str:
        """The name of the identity for revocations: host/a, or imported/host/a."""
        return str(self.identity) if self.own else f"{IMPORTED}/{self.identity}"


class Peer(Record):
    """The other end of a connection that the gateway accepted."""

    kind: PeerKind
    address: str  # TCP: without the port; unix and node: "pid 17"
    uid: int = -1
    groups: tuple[int, ...] = ()
    certificate: Certified | None = None  # TCP: the one that TLS verified, if one was sent
    token: str = ""  # TCP without a certificate: the id of the token of its first call

    @property
    def quota_key(self) -> str:
        """The key under which its connections are counted: certificate, address or user."""
        if self.certificate is not None:
            return self.certificate.subject
        return self.address if self.kind == "tcp" else f"uid {self.uid}"

    @property
    def caller_key(self) -> str:
        """The key under which calls are counted: a token may come from many addresses."""
        return f"token {self.token}" if self.token else self.quota_key


class Caller(Record):
    """The identity behind a call: role, subject and origin."""

    role: Role
    subject: str
    origin: str  # "": the daemon itself
    local: bool = False
    certificate: Certified | None = None
    token: str = ""  # id of the bearer token
    machine: str = ""  # hash of the machine id of a host, as its zfsilod sends it

    @property
    def authority(self) -> str:
        """The authority of its certificate, as a host record has it: OWN, IMPORTED, or ""."""
        if self.certificate is None:
            return ""
        return "OWN" if self.certificate.own else "IMPORTED"

    @property
    def rights(self) -> str:
        """The rights behind its operations: the role, and of a host or a peer also its id."""
        own = self.role in ("host", "replica")
        return f"{self.role} {self.peer}" if own else self.role

    @property
    def peer(self) -> str:
        """The name by which it owns replicas.

        One name in a certificate of this server, in an imported one, and of a token, are three.
        """
        if self.token:
            return f"token/{self.subject}"
        return f"{IMPORTED}/{self.subject}" if self.authority == "IMPORTED" else self.subject

    def overrides(self, rights: str) -> bool:
        """Tell whether it may cancel, roll back or abandon an operation with these rights.

        An administrator overrides all, a controller also hosts, everybody else its own. Operations
        of former versions have no rights stored: they may be those of an administrator.
        """
        hosts = self.role == "controller" and rights.startswith("host ")
        return self.role == "admin" or rights == self.rights or hosts

    def __str__(self) -> str:
        if not self.origin:
            return self.subject
        unix = self.local and self.role == "admin"
        name = self.subject if unix else f"{self.role} {self.subject}"
        return f"{name} ({self.origin})"

    def own_host(self, asked: str) -> str:
        """Return the host that a request names; a caller of role host names itself or no host.

        Raises InvalidArgument when another role names none, PermissionDenied for another host.
        """
        if self.role != "host":
            if not asked:
                raise InvalidArgument("the request names no host", reason="NO_HOST")
            return asked
        if asked not in ("", self.subject):
            raise PermissionDenied(
                f"{self} may not act for host {asked[:128]}", reason="OTHER_HOST"
            )
        return self.subject


DAEMON = Caller(role="admin", subject="zfsilod", origin="", local=True)
"""The caller of requests that the daemon submits by itself."""

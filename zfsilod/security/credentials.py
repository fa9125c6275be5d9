"""Credentials of a caller: revocation, and the authority and machine that a host id is bound to.

Checked at every call, and again in the transaction that uses them: a certificate may be revoked
while a call gathers its inputs. A revocation of an identity covers everything that was issued to it
before, also certificates whose records are lost. It compares counters of the store, not times, so
that a wrong clock cannot undo it: after it, only certificates that were recorded later are valid.
Certificates of imported authorities have no records, so theirs lasts until it is withdrawn.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zfsilod.model.errors import NotFound, PermissionDenied, Unauthenticated
from zfsilod.model.identity import IMPORTED
from zfsilod.model.records import Host, Issued, Revocation, Token
from zfsilod.model.validation import ID

if TYPE_CHECKING:
    from zfsilod.model.identity import Caller, Certified
    from zfsilod.storage.transaction import Transaction

REVOKED = "BAD_CERTIFICATE"
SHORT_ID = 8  # fewer digits do not select a certificate
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
IDENTITY = re.compile(rf"(?:{IMPORTED}/)?(?:host|user)/(?:{ID.pattern})")


def is_revoked(txn: Transaction, certified: Certified) -> bool:
    """Tell whether a certificate, or the identity in it, is revoked."""
    issued = txn.get(Issued, certified.fingerprint)
    if issued is not None and issued.revoked_at:
        return True
    revocation = txn.get(Revocation, certified.subject)
    if revocation is None:
        return False
    return not certified.own or issued is None or issued.revision < revocation.revision


def as_revoked(txn: Transaction, issued: Issued) -> Issued:
    """Return a certificate, with the time of the revocation of its identity if that covers it."""
    revocation = txn.get(Revocation, issued.subject)
    if revocation is None or issued.revoked_at or issued.revision > revocation.revision:
        return issued
    return issued.but(revoked_at=revocation.revoked_at)


def check_caller(txn: Transaction, caller: Caller) -> None:
    """Raise Unauthenticated or PermissionDenied when a caller's credentials are not valid now."""
    certified = caller.certificate
    if certified is not None and is_revoked(txn, certified):
        raise Unauthenticated(f"certificate for {certified.identity} is revoked", reason=REVOKED)
    if caller.token and txn.get(Token, caller.token) is None:
        raise Unauthenticated("unknown bearer token", reason="BAD_TOKEN")
    if caller.role == "host" and certified is not None:
        _check_host(txn, caller, certified)


def _check_host(txn: Transaction, caller: Caller, certified: Certified) -> None:
    host = txn.get(Host, caller.subject)
    bound = host.authority if host is not None else ""
    if not bound and not certified.own and _is_known_as_own(txn, caller.subject):
        bound = "OWN"
    if bound not in ("", caller.authority):
        this, other = ("this server's own", "an imported")
        if bound == "IMPORTED":
            this, other = other, this
        raise PermissionDenied(
            f"host {caller.subject} belongs to {this} authority, not to {other} one: use another "
            f"host id; or, on this server, run zfsiloctl pki revoke host/{caller.subject} and "
            f"zfsiloctl host delete {caller.subject}, then register again",
            reason="OTHER_AUTHORITY",
            host=caller.subject,
        )
    if caller.machine:
        check_machine(txn, caller)


def check_machine(txn: Transaction, caller: Caller) -> None:
    """Raise PermissionDenied when a host calls from another machine than the one it is bound to."""
    host = txn.get(Host, caller.subject) if caller.role == "host" else None
    if host is None or host.machine in ("", caller.machine):
        return
    raise PermissionDenied(
        f"host {host.id} is another machine than this one: its host id belongs to the machine that "
        f"registered first. If that machine was replaced, run zfsiloctl host update {host.id} "
        "--new-machine on this server; a clone needs a host id and a certificate of its own",
        reason="OTHER_MACHINE",
        host=host.id,
    )


def _is_known_as_own(txn: Transaction, host_id: str) -> bool:
    """Tell whether a host has a certificate of this host's own authority that is not revoked."""
    subject = f"host/{host_id}"
    ids = [record["id"] for record in txn.scan_plain(Issued) if record["subject"] == subject]
    issued = (txn.get(Issued, fingerprint) for fingerprint in ids)
    return any(record is not None and not as_revoked(txn, record).revoked_at for record in issued)


def revoke(txn: Transaction, name: str, now: int, *, unknown: bool = False) -> list[str]:
    """Revoke an identity, or certificates by the start of their ids; return what was revoked.

    Raises NotFound when the name is neither an identity nor the id of a certificate; for an own
    identity without a recorded certificate only with `unknown`, since it may be a wrong name.
    """
    if IDENTITY.fullmatch(name):
        matches = [issued for issued in txn.scan(Issued) if issued.subject == name]
        imported = name.startswith(f"{IMPORTED}/")
        if not (matches or imported or unknown or txn.get(Revocation, name)):
            raise NotFound(
                f"no certificate of {name} is recorded; see zfsiloctl pki list, or add --unknown "
                "to revoke certificates whose records are lost"
            )
        txn.put(Revocation(id=name, revoked_at=now))
        named = [f"identity {name}"]
    else:
        long = len(name) >= SHORT_ID
        matches = [issued for issued in txn.scan(Issued) if long and issued.id.startswith(name)]
        if not matches and FINGERPRINT.fullmatch(name):  # of an imported authority, or lost
            matches = [Issued(id=name, subject="", role="", created_at=now)]
        if not matches:
            raise NotFound(f"there is no certificate {name}; see zfsiloctl pki list")
        named = []
    for issued in matches:
        txn.put(issued.but(revoked_at=issued.revoked_at or now))
    return [*named, *(f"certificate {issued.id[:16]} of {issued.subject}" for issued in matches)]


def withdraw(txn: Transaction, name: str) -> None:
    """Withdraw the revocation of an identity of the imported authorities. Raises NotFound."""
    revocation = txn.get(Revocation, name) if name.startswith(f"{IMPORTED}/") else None
    if revocation is None:
        raise NotFound(
            f"there is no revocation of {name}; only those of {IMPORTED}/host/NAME and "
            f"{IMPORTED}/user/NAME can be withdrawn, others need a new certificate"
        )
    txn.drop(Revocation.bucket(), revocation.key)

"""How many certificates of one identity are valid at one time, and when their records end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import ResourceExhausted
from zfsilod.model.records import Issued

if TYPE_CHECKING:
    from zfsilod.storage.transaction import Transaction

MAX_VALID = 32  # of one identity; a host needs two in 90 days
KEPT_S = 30 * 86400  # after the expiry: the clock may have been ahead


def limit_certificates(txn: Transaction, new: Issued, trusted: int | None) -> None:
    """Make room for the record of a renewed certificate: records have an end.

    `trusted`: the time by which a retention may act. Without it all records stay: by a clock that
    is ahead, a certificate that was revoked would be forgotten and be valid again.
    Raises ResourceExhausted when the identity has MAX_VALID certificates that are still valid.
    """
    own = [one for one in txn.scan_plain(Issued) if one["subject"] == new.subject]
    for issued in own:
        if trusted is not None and issued["expires_at"] + KEPT_S < trusted:
            txn.drop(Issued.bucket(), issued["id"])
    valid = [one for one in own if one["expires_at"] >= new.created_at]
    if len(valid) >= MAX_VALID:
        raise ResourceExhausted(
            f"{new.subject} has {len(valid)} valid certificates: use the newest one, or revoke "
            f"them with zfsiloctl pki revoke {new.subject}",
            reason="TOO_MANY",
        )

"""Digests of secrets, which the simulated host keeps in place of them."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap


def digest(chap: Chap) -> str:
    """Return a SHA-256 digest of CHAP secrets."""
    import hashlib

    return hashlib.sha256(repr(sorted(chap.values().items())).encode()).hexdigest()

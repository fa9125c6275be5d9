"""Digests of secrets, which the simulated host keeps in place of them."""

from __future__ import annotations

import hashlib

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap


def digest(chap: Chap) -> str:
    """Return a SHA-256 digest of CHAP secrets."""
    return hashlib.sha256(repr(sorted(chap.values().items())).encode()).hexdigest()

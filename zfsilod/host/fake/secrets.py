"""Digests of secrets, which the simulated host keeps in place of them."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.disk_key import DiskKey


def digest(chap: Chap) -> str:
    """Return a SHA-256 digest of CHAP secrets."""
    import hashlib

    return hashlib.sha256(repr(sorted(chap.values().items())).encode()).hexdigest()


def loaded_fact(uid: str) -> str:
    """Return the name of the fact that the key of a volume is loaded."""
    return f"key:{uid}"


def key_digest(key: DiskKey) -> str:
    """Return a SHA-256 digest of a key."""
    import hashlib

    return hashlib.sha256(key.reveal()).hexdigest()

"""What the simulated host keeps of a secret."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap


def digest(chap: Chap) -> str:
    """Return what tells one set of secrets from another, and gives none away."""
    return hashlib.sha256(repr(sorted(chap.values().items())).encode()).hexdigest()

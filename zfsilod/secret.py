"""Secrets that cannot be printed: CHAP names and passwords, and how they are made and sealed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32
NONCE_BYTES = 12


class Chap:
    """The four CHAP values of one publication: RFC 7143 section 12.1, both directions."""

    def __init__(
        self, *, username: str, password: str, mutual_username: str, mutual_password: str
    ) -> None:
        self.username = username
        self.password = password
        self.mutual_username = mutual_username
        self.mutual_password = mutual_password

    @classmethod
    def make(cls, *, username: str, mutual_username: str) -> Chap:
        """Make new passwords, 128 random bits each, of characters that every initiator accepts."""
        password, mutual = os.urandom(16).hex(), os.urandom(16).hex()
        return cls(
            username=username, password=password,
            mutual_username=mutual_username, mutual_password=mutual,
        )  # fmt: skip

    def values(self) -> dict[str, str]:
        """Return the four values for the one who must write them. Never log what this returns."""
        return {
            "username": self.username,
            "password": self.password,
            "mutual_username": self.mutual_username,
            "mutual_password": self.mutual_password,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chap) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash(self.username)

    def __repr__(self) -> str:
        return "Chap(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


def load_key(path: Path) -> bytes:
    """Read the store's key, and make it on first use: 32 random bytes, for root only."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(os.urandom(KEY_BYTES))
        return path.read_bytes()


def seal(key: bytes, name: str, chap: Chap) -> bytes:
    """Encrypt secrets with AES-256-GCM, bound to their name."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 30 ms: only verbs with secrets

    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, json.dumps(chap.values()).encode(), name.encode())


def unseal(key: bytes, name: str, sealed: bytes) -> Chap:
    """Undo `seal`. Raises cryptography.exceptions.InvalidTag when key or name is another."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 30 ms: only verbs with secrets

    nonce, text = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    return Chap(**json.loads(AESGCM(key).decrypt(nonce, text, name.encode())))

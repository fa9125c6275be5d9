"""Sealed secrets: the key of the store, and the encryption of CHAP values with it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from zfsilod.model.chap import Chap
from zfsilod.model.errors import StoreCorrupt
from zfsilod.storage.files import write_private

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32
CREDENTIAL = "zfsilo.key"  # systemd.exec(5), LoadCredentialEncrypted=
NONCE_BYTES = 12


def credential() -> str:
    """Return the path of the credential with the store's key, or "": systemd.exec(5)."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = f"{folder}/{CREDENTIAL}"
    return path if folder and os.access(path, os.R_OK) else ""


def load_key(path: Path) -> bytes:
    """Return the store's key: the credential of the unit, else the content of `path`.

    The file is created on first use, with 32 random bytes. Raises StoreCorrupt for another length.
    """
    if sealed := credential():
        with open(sealed, "rb") as file:  # noqa: PTH123 - pathlib costs a worker 5 ms
            return _checked(file.read(), sealed)
    if not path.exists():
        write_private(path, os.urandom(KEY_BYTES))
    return _checked(path.read_bytes(), os.fspath(path))


def _checked(key: bytes, place: str) -> bytes:
    if len(key) != KEY_BYTES:
        raise StoreCorrupt(
            f"the key of the store in {place} has {len(key)} bytes, not {KEY_BYTES}; restore it "
            "from a backup, see zfsilod(8)"
        )
    return key


def seal(key: bytes, name: str, chap: Chap) -> bytes:
    """Encrypt CHAP values with AES-256-GCM, bound to their name."""
    from cryptography.hazmat.primitives.ciphers.aead import (
        AESGCM,  # 30 ms: only requests with secrets
    )

    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, json.dumps(chap.values()).encode(), name.encode())


def unseal(key: bytes, name: str, sealed: bytes) -> Chap:
    """Reverse `seal`. Raises StoreCorrupt for another key or name."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import (
        AESGCM,  # 30 ms: only requests with secrets
    )

    nonce, text = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        values = AESGCM(key).decrypt(nonce, text, name.encode())
    except InvalidTag:
        raise StoreCorrupt(
            f"the secrets of {name} cannot be decrypted with the key of this host; restore the key "
            "from a backup, see zfsilod(8)"
        ) from None
    return Chap(**json.loads(values))

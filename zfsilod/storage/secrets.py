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
    """Return the file in which systemd gives the store's key to this unit; "": it gives none."""
    given = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = f"{given}/{CREDENTIAL}"
    return path if given and os.access(path, os.R_OK) else ""


def load_key(path: Path) -> bytes:
    """Return the store's key: of systemd's credentials where there, else of a file of root's.

    The file is made on first use: 32 random bytes. Raises StoreCorrupt when it has another length.
    """
    if given := credential():
        with open(given, "rb") as file:  # noqa: PTH123 - pathlib costs a worker 5 ms
            return _checked(file.read(), given)
    if not path.exists():
        write_private(path, os.urandom(KEY_BYTES))
    return _checked(path.read_bytes(), os.fspath(path))


def _checked(key: bytes, place: str) -> bytes:
    if len(key) != KEY_BYTES:
        raise StoreCorrupt(
            f"the key of the store in {place} has {len(key)} bytes, not {KEY_BYTES}: bring it back "
            "from a backup (zfsilod(8))"
        )
    return key


def seal(key: bytes, name: str, chap: Chap) -> bytes:
    """Encrypt secrets with AES-256-GCM, bound to their name."""
    from cryptography.hazmat.primitives.ciphers.aead import (
        AESGCM,  # 30 ms: only requests with secrets
    )

    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, json.dumps(chap.values()).encode(), name.encode())


def unseal(key: bytes, name: str, sealed: bytes) -> Chap:
    """Undo `seal`. Raises StoreCorrupt when key or name is another."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import (
        AESGCM,  # 30 ms: only requests with secrets
    )

    nonce, text = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        values = AESGCM(key).decrypt(nonce, text, name.encode())
    except InvalidTag:
        raise StoreCorrupt(
            f"the secrets of {name} do not open with the key that this host has: bring the key "
            "back (zfsilod(8))"
        ) from None
    return Chap(**json.loads(values))

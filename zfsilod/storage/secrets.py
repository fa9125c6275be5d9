"""Sealed secrets: the key of the store, and the encryption of CHAP values and disk keys with it."""

from __future__ import annotations

import os

from zfsilod.model.errors import StoreCorrupt
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage import record_json
from zfsilod.storage.files import write_private
from zfsilod.storage.paths import exists

if TYPE_CHECKING:
    from typing import Any

    from zfsilod.model.chap import Chap
    from zfsilod.model.disk_key import DiskKey
    from zfsilod.storage.paths import AnyPath

KEY_BYTES = 32
CREDENTIAL = "zfsilo.key"  # systemd.exec(5), LoadCredentialEncrypted=
NONCE_BYTES = 12


def credential() -> str:
    """Return the path of the credential with the store's key, or "": systemd.exec(5)."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = f"{folder}/{CREDENTIAL}"
    return path if folder and os.access(path, os.R_OK) else ""


def make_key(path: AnyPath) -> None:
    """Make the key of a store in a file, with 32 random bytes."""
    write_private(path, os.urandom(KEY_BYTES))


def load_key(path: AnyPath) -> bytes:
    """Return the store's key: the credential of the unit, else the content of `path`.

    Raises StoreCorrupt for a missing key and for another length.
    """
    place = credential() or os.fspath(path)
    if not exists(place):
        raise StoreCorrupt(
            f"the key of the store is not in {place}, and systemd passed none: restore the file, "
            "or the sealed key in /etc/credstore.encrypted, from a backup"
        )
    with open(place, "rb") as file:
        return _checked(file.read(), place)


def _checked(key: bytes, place: str) -> bytes:
    if len(key) != KEY_BYTES:
        raise StoreCorrupt(
            f"the key of the store in {place} has {len(key)} bytes, not {KEY_BYTES}; restore it "
            "from a backup, see zfsilod(8)"
        )
    return key


def seal(key: bytes, name: str, secret: Chap | DiskKey) -> bytes:
    """Encrypt the values of a secret with AES-256-GCM, bound to their name."""
    nonce = os.urandom(NONCE_BYTES)
    text: bytes = _cipher(key).encrypt(nonce, record_json.dumps(secret.values()), name.encode())
    return nonce + text


def unseal(key: bytes, name: str, sealed: bytes) -> dict[str, str]:
    """Return the values that `seal` encrypted. Raises StoreCorrupt for another key or name."""
    nonce, text = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        values = _cipher(key).decrypt(nonce, text, name.encode())
    except _invalid_tag():
        raise StoreCorrupt(
            f"the secrets of {name} cannot be decrypted with the key of this host; restore the key "
            "from a backup, see zfsilod(8)"
        ) from None
    unsealed: dict[str, str] = record_json.loads(values)
    return unsealed


def _cipher(key: bytes) -> Any:
    """Return AES-256-GCM with this key, imported on first use: only some requests have secrets.

    It is the class that the public module of cryptography exports, taken from where that module
    takes it: 5 ms instead of 20.
    """
    try:
        from cryptography.hazmat.bindings._rust import openssl

        return openssl.aead.AESGCM(key)
    except (ImportError, AttributeError):  # a version that has it elsewhere
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(key)


def _invalid_tag() -> type[Exception]:
    from cryptography.exceptions import InvalidTag  # only a failure costs this import

    return InvalidTag

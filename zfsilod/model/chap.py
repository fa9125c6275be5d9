"""Secrets that cannot be printed: CHAP names and passwords, and how they are made and sealed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NoReturn

from zfsilod.model.errors import StoreCorrupt
from zfsilod.storage.fsync import sync_folder

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32
CREDENTIAL = "zfsilo.key"  # systemd.exec(5), LoadCredentialEncrypted=
NONCE_BYTES = 12
PREFIX = "zfsilo-chap-"  # of a CHAP password that we made


class Secret:
    """A text that does not show itself: not in messages, logs, tracebacks, JSON or pickles."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for the one who must write or send it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(...)"

    def __format__(self, _form: str) -> str:
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


class Chap:
    """The four CHAP values of one publication: RFC 7143 section 12.1, both directions."""

    def __init__(
        self, *, username: str, password: str, mutual_username: str, mutual_password: str
    ) -> None:
        self.username = username
        self.password = Secret(password)
        self.mutual_username = mutual_username
        self.mutual_password = Secret(mutual_password)

    @classmethod
    def make(cls, *, username: str, mutual_username: str) -> Chap:
        """Make new passwords, 128 random bits each, of characters that every initiator accepts.

        What they begin with tells them from all other text, so that a leaked one can be found.
        """
        password, mutual = (PREFIX + os.urandom(16).hex() for _way in range(2))
        return cls(
            username=username,
            password=password,
            mutual_username=mutual_username,
            mutual_password=mutual,
        )

    def values(self) -> dict[str, str]:
        """Return the four values for the one who must write them. Never log what this returns."""
        return {
            "username": self.username,
            "password": self.password.reveal(),
            "mutual_username": self.mutual_username,
            "mutual_password": self.mutual_password.reveal(),
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chap) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash(self.username)

    def __repr__(self) -> str:
        return "Chap(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


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


def write_private(path: Path, content: bytes) -> None:
    """Write a file for its owner only, whole or not at all, and so that a power cut leaves it."""
    draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    sync_folder(path.parent)


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

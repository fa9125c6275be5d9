"""CHAP names and passwords, also keys of DH-HMAC-CHAP and TLS, that cannot be printed."""

from __future__ import annotations

import os

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

PREFIX = "zfsilo-chap-"  # of generated CHAP passwords
KEY_PREFIX = (
    "DHHC-1:01:"  # of keys of DH-HMAC-CHAP that SHA-256 transforms: NVMe base 2.0, 8.13.5.8
)
TLS_KEY_PREFIX = "NVMeTLSkey-1:01:"  # of a PSK for SHA-256: NVMe/TCP transport 1.0c, 3.6.1.5
KEY_BYTES = 32
WINDOWS = "iqn.1991-05.com.microsoft:"  # the initiators of Windows, with the name of the computer
SHORT_BYTES = 12  # 16 characters


class Secret:
    """A text that does not appear in messages, logs, tracebacks, JSON or pickles."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, to write or send it."""
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
    """The four CHAP values of one publication: RFC 7143 section 12.1, both directions.

    Over NVMe the names are the NQNs of host and subsystem, and the passwords their keys. With TLS
    both have a further key, the configured PSK; "": without TLS.
    """

    def __init__(
        self,
        *,
        username: str,
        password: str,
        mutual_username: str,
        mutual_password: str,
        tls_key: str = "",
    ) -> None:
        self.username = username
        self.password = Secret(password)
        self.mutual_username = mutual_username
        self.mutual_password = Secret(mutual_password)
        self.tls_key = Secret(tls_key)

    @classmethod
    def make(cls, *, username: str, mutual_username: str) -> Chap:
        """Return new passwords, 128 random bits each, of characters that every initiator accepts.

        Their prefix makes a leaked one easy to find. Windows accepts 12 to 16 characters: 96 bits,
        the least that RFC 7143 section 9.2.1 asks for, and no prefix.
        """
        make = _short_password if username.lower().startswith(WINDOWS) else _password
        password, mutual = make(), make()
        return cls(
            username=username,
            password=password,
            mutual_username=mutual_username,
            mutual_password=mutual,
        )

    @classmethod
    def make_keys(cls, *, host: str, subsystem: str, tls: bool = False) -> Chap:
        """Return new keys of a host and of a subsystem, 256 random bits each.

        Of DH-HMAC-CHAP, and with `tls` the PSK that both share.
        """
        return cls(
            username=host,
            password=_key(KEY_PREFIX),
            mutual_username=subsystem,
            mutual_password=_key(KEY_PREFIX),
            tls_key=_key(TLS_KEY_PREFIX) if tls else "",
        )

    @property
    def has_tls(self) -> bool:
        """Whether the connection has TLS."""
        return bool(self.tls_key.reveal())

    def values(self) -> dict[str, str]:
        """Return the values, to write or send them. Never log the result."""
        tls = {"tls_key": self.tls_key.reveal()} if self.has_tls else {}
        return tls | {
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


def _key(prefix: str) -> str:
    """Return a new key in its interchange form: base64 of the key and of its CRC-32."""
    from base64 import b64encode
    from zlib import crc32

    key = os.urandom(KEY_BYTES)
    checked = key + crc32(key).to_bytes(4, "little")
    return f"{prefix}{b64encode(checked).decode()}:"


def _password() -> str:
    return PREFIX + os.urandom(16).hex()


def _short_password() -> str:
    from base64 import b64encode  # in the daemon only

    return b64encode(os.urandom(SHORT_BYTES), b"._").decode()

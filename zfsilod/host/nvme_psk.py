"""The PSK of TLS 1.3 for NVMe/TCP, derived from a configured one, and its identity.

NVMe/TCP transport specification 1.0c, sections 3.6.1.3 to 3.6.1.5; HKDF-Expand-Label is that of RFC
8446, section 7.1. Both sides derive the same key, so that the kernel's keyring never has the
configured one. nvme-cli with libnvme before 1.15 derives another key from it.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from zlib import crc32

from zfsilod.model.chap import KEY_BYTES, TLS_KEY_PREFIX
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap, Secret

SHA256 = "01"  # the hash of 32 bytes, as identities name it
CRC_BYTES = 4


def derived_psk(chap: Chap) -> tuple[str, bytes]:
    """Return the identity of a PSK, which is the description of its key, and the PSK: 32 bytes.

    Raises InvalidArgument for a configured PSK that is not valid; the error never quotes it.
    """
    host, subsystem = chap.username, chap.mutual_username
    retained = expand_label(configured_psk(chap.tls_key), "HostNQN", host)
    text = f"{host} {subsystem} NVMe-over-Fabrics"
    digest = b64encode(_hmac(retained, text.encode())).decode()
    psk = expand_label(retained, "nvme-tls-psk", f"{SHA256} {digest}")
    return f"NVMe1R{SHA256} {host} {subsystem} {digest}", psk


def configured_psk(key: Secret) -> bytes:
    """Return the bytes of a configured PSK in its interchange form."""
    text = key.reveal()
    try:
        checked = b64decode(text.removeprefix(TLS_KEY_PREFIX).removesuffix(":"), validate=True)
    except binascii.Error:
        checked = b""
    psk, crc = checked[:KEY_BYTES], checked[KEY_BYTES:]
    valid = len(crc) == CRC_BYTES and crc32(psk).to_bytes(CRC_BYTES, "little") == crc
    if not valid or not text.startswith(TLS_KEY_PREFIX):
        raise InvalidArgument("a key of TLS is not a PSK of NVMe/TCP")
    return psk


def expand_label(key: bytes, label: str, context: str) -> bytes:
    """Return 32 bytes derived from a key by HKDF-Extract without salt and HKDF-Expand-Label."""
    name, about = f"tls13 {label}".encode(), context.encode()
    info = b"".join(
        (KEY_BYTES.to_bytes(2, "big"), bytes([len(name)]), name, bytes([len(about)]), about)
    )
    return _hmac(_hmac(bytes(KEY_BYTES), key), info + b"\x01")


def _hmac(key: bytes, message: bytes) -> bytes:
    import hmac  # takes 3 ms, which only a worker with TLS needs

    return hmac.digest(key, message, "sha256")

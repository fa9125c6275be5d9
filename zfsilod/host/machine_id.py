"""The id of this machine for zfsilo, which does not reveal /etc/machine-id."""

from __future__ import annotations

import hmac

from zfsilod.model.errors import Unavailable
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import read_text

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath

APPLICATION = "5b1f8a7e3c0d4e62a9c47d20f6b1e853"  # permanent: stores keep what it gives
MACHINE_ID = "/etc/machine-id"
HEX_DIGITS = 32


def machine_id(path: AnyPath = MACHINE_ID) -> str:
    """Return the application-specific machine id, as sd_id128_get_machine_app_specific(3) does.

    32 hex digits; another machine, and a clone that got a new /etc/machine-id, has another one.
    Raises Unavailable while the machine has none (early in a first boot).
    """
    try:
        text = read_text(path).strip()
        if len(text) != HEX_DIGITS:
            raise ValueError(f"{len(text)} characters")
        key = bytes.fromhex(text)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"{path} does not have a machine id ({error}): run systemd-machine-id-setup"
        ) from error
    digest = bytearray(hmac.digest(key, bytes.fromhex(APPLICATION), "sha256")[:16])
    digest[6] = digest[6] & 0x0F | 0x40  # a UUID of version 4, RFC 9562
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()

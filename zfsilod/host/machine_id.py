"""The id of this machine for zfsilo, which does not reveal /etc/machine-id."""

from __future__ import annotations

import hmac
import uuid
from pathlib import Path

from zfsilod.model.errors import Unavailable

APPLICATION = uuid.UUID("5b1f8a7e3c0d4e62a9c47d20f6b1e853")  # permanent: stores keep what it gives
MACHINE_ID = Path("/etc/machine-id")


def machine_id(path: Path = MACHINE_ID) -> str:
    """Return the application-specific machine id, as sd_id128_get_machine_app_specific(3) does.

    32 hex digits; another machine, and a clone that got a new /etc/machine-id, has another one.
    Raises Unavailable while the machine has none (early in a first boot).
    """
    try:
        key = uuid.UUID(path.read_text().strip()).bytes
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"{path} does not have a machine id ({error}): run systemd-machine-id-setup"
        ) from error
    digest = hmac.digest(key, APPLICATION.bytes, "sha256")
    return uuid.UUID(bytes=digest[:16], version=4).hex

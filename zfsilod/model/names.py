"""Names that come from other hosts and go into paths and argument lists here: checked first."""

from __future__ import annotations

import re

from zfsilod.model.errors import InvalidArgument

# RFC 3720, 3.2.6; no slash, so that it stays one component of a path; at most 223 characters.
ISCSI_NAME = re.compile(r"(?:iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,219}")
PORTAL = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):([0-9]{1,5})")


def iscsi_name(name: str) -> str:
    """Return the name of a target or an initiator. Raises InvalidArgument."""
    if not ISCSI_NAME.fullmatch(name):
        raise InvalidArgument(f"{name[:223]!r} is not an iSCSI name", reason="BAD_ISCSI_NAME")
    return name


def portal_parts(portal: str) -> tuple[str, int]:
    """Return address and port of "10.0.0.1:3260" or "[fd00::1]:3260". Raises InvalidArgument."""
    found = PORTAL.fullmatch(portal)
    if not found:
        raise InvalidArgument(
            f"{portal[:100]!r} is not a portal: address:port, an IPv6 address in brackets",
            reason="BAD_PORTAL",
        )
    return found[1].strip("[]"), int(found[2])

"""Names and addresses that other programs define: one pattern each, and one check each.

They become parts of paths and argument lists: none of the patterns matches a slash, a space, a line
end or a leading dash. Only a dataset name has slashes, between its components.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress

from zfsilod.model.errors import InvalidArgument

# A pool name starts with a letter: zpoolconcepts(7). "." and ".." would lead to other
# places below /dev/zvol.
DATASET = re.compile(
    r"(?=.{1,255}\Z)[A-Za-z][A-Za-z0-9_:.-]*(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_:.-]+)*"
)
# RFC 3720, 3.2.6: at most 223 characters, compared without case. Kernel and open-iscsi accept upper
# case and "_" too. nix/module.nix has these patterns, and a test compares them.
ISCSI_NAME = re.compile(r"(?i:iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,219}")
IQN_PREFIX = re.compile(
    r"(?i:iqn)\.[0-9]{4}-[0-9]{2}\.[A-Za-z0-9][A-Za-z0-9._-]*(?::[A-Za-z0-9.:_-]+)?"
)
MAX_PREFIX = 150
OBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a backstore of the kernel's target
# NVMe base specification 2.0, 4.5: at most 223 characters.
NQN = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.[A-Za-z0-9.:_-]{1,211}")
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# A scope, as in fe80::1%eth0, names an interface: RFC 4007, 11.
PORTAL = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]{1,15})?\]|[0-9.]+):([1-9][0-9]{0,4})")
MAX_PORT_DIGITS = 5
HOST_ADDRESS = re.compile(r"[A-Za-z0-9.:_%-]{1,253}")


def check_dataset(name: str) -> str:
    """Return the name of a dataset. Raises InvalidArgument."""
    if not DATASET.fullmatch(name):
        raise InvalidArgument(f"{name[:255]!r} is not the name of a dataset", reason="BAD_DATASET")
    return name


def is_placed(dataset: str, root: str, adopt_from: tuple[str, ...]) -> bool:
    """Tell whether a dataset may be that of a volume: below the root, or where zvols are adopted.

    On a host without a root, only the datasets that adopt_from itself names may be.
    """
    places = (root, *adopt_from) if root else ()
    return dataset in adopt_from or any(dataset.startswith(f"{place}/") for place in places)


def iscsi_name(name: str) -> str:
    """Return the name of a target or an initiator. Raises InvalidArgument."""
    if not ISCSI_NAME.fullmatch(name):
        raise InvalidArgument(f"{name[:223]!r} is not an iSCSI name", reason="BAD_IQN")
    return name


def initiator_name(name: str) -> str:
    """Return the name of an initiator in the form that an ACL needs. Raises InvalidArgument.

    The kernel's target turns the name at a login into lower case (RFC 3720, 3.2.6.1) before it
    looks for the ACL.
    """
    if not ISCSI_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name[:223]!r} is not an IQN; see /etc/iscsi/initiatorname.iscsi", reason="BAD_IQN"
        )
    return name.lower()


def target_prefix(text: str) -> str:
    """Return the prefix of target names in the form that targets have. Raises InvalidArgument.

    Initiators may send the name of a target in lower case only: RFC 3720, 3.2.6.1.
    """
    if not IQN_PREFIX.fullmatch(text) or len(text) > MAX_PREFIX:
        raise InvalidArgument(
            f"{text[:223]!r} is not an IQN; use iqn.2026-01.org.example:storage", reason="BAD_IQN"
        )
    return text.lower()


def target_of(prefix: str, uid: str, recorded: str = "") -> str:
    """Return the IQN of a volume's target; its length does not depend on the volume's id.

    It is the recorded one as long as the target exists: `prefix` is for a new one.
    """
    return recorded or f"{prefix}:{uid}"


def parse_initiator_name(text: str) -> str:
    """Return the first IQN in the text of an initiatorname.iscsi that is not empty; "" if none.

    iscsid uses the same one (cfg_get_string_param() of open-iscsi), so the server sees it at login.
    """
    for line in text.splitlines():
        key, _equals, value = line.strip().partition("=")
        if key.strip() == "InitiatorName" and value.strip():
            return value.strip()
    return ""


def check_nqn(name: str) -> str:
    """Return the NVMe name of a host. Raises InvalidArgument."""
    if not NQN.fullmatch(name):
        raise InvalidArgument(
            f"{name[:223]!r} is not an NQN; see /etc/nvme/hostnqn", reason="BAD_NQN"
        )
    return name


def portal_parts(portal: str) -> tuple[str, int]:
    """Return address and port of "10.0.0.1:3260" or "[fe80::1%eth0]:3260".

    An IPv6 address has its shortest form, in lower case: RFC 5952. Raises InvalidArgument for a
    host name too: a portal is an address.
    """
    match = PORTAL.fullmatch(portal)
    if match:
        with suppress(ValueError):  # not an address
            address, port = ipaddress.ip_address(match[1].strip("[]")), int(match[2])
            if address.version == (6 if portal.startswith("[") else 4) and port < 65536:
                return str(address), port
    raise InvalidArgument(
        f"{portal[:100]!r} is not a portal; use ADDRESS:PORT, an IPv6 address in brackets",
        reason="BAD_PORTAL",
    )


def check_portal(portal: str) -> str:
    """Return a portal in its only form, in which portals are compared. Raises InvalidArgument."""
    return join_portal(*portal_parts(portal))


def join_portal(address: str, port: int | str) -> str:
    """Return the portal of an address and a port; an IPv6 address gets its brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_portal(text: str) -> bool:
    """Tell whether a text is a portal."""
    try:
        portal_parts(text)
    except InvalidArgument:
        return False
    return True


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [IPV6]:PORT, else raise InvalidArgument."""
    host, _colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare) != (bare != host) or not bare.isascii() or not bare.isprintable():
        raise InvalidArgument(
            f"{address[:200]!r} is not an address; use HOST:PORT or [IPV6]:PORT",
            reason="BAD_ADDRESS",
        )
    short = len(port) <= MAX_PORT_DIGITS and port.isascii() and port.isdigit()
    if not (short and 0 < int(port) < 65536):
        raise InvalidArgument(
            f"{address[:200]!r} has no port; use HOST:PORT or [IPV6]:PORT", reason="BAD_ADDRESS"
        )
    return bare, int(port)

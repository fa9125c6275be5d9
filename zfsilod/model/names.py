"""Names and addresses that other programs define: one pattern each, and one check each.

They become parts of paths and argument lists: none of the patterns matches a slash, a space, a line
end or a leading dash. Only a dataset name has slashes, between its components.
"""

from __future__ import annotations

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.words import Transport

DIGITS = frozenset("0123456789")
LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
ALPHANUMERIC = LETTERS | DIGITS
MAX_DATASET, MAX_ISCSI_NAME, MAX_NQN, MAX_OBJECT = 255, 223, 223, 128
NQN = "nqn."
HOST_NQN = "nqn.2026-01.org.zfsilo:host:"  # then the id of the host and the uid of the volume
MAX_PORT_DIGITS = 5
MAX_GUID = 20  # digits
ANY_IPV4, MAPPED = "0.0.0.0", "::ffff:"  # noqa: S104 - compared with, not bound
MAX_SCOPE = 15  # IFNAMSIZ without its NUL
UUID_LENGTHS = [8, 4, 4, 4, 12]


def is_dataset(text: str) -> bool:
    """Tell whether a text is the name of a dataset: zfs(8).

    A pool name starts with a letter: zpoolconcepts(7). "." and ".." would lead to other places
    below /dev/zvol.
    """
    pool, *others = text.split("/")
    return (
        len(text) <= MAX_DATASET
        and pool[:1] in LETTERS
        and ALPHANUMERIC.union("_:.-").issuperset("".join((pool, *others)))
        and not {"", ".", ".."}.intersection(others)
    )


def is_iscsi_name(text: str) -> bool:
    """Tell whether a text is the name of a target or an initiator, at most 223 characters.

    RFC 3720, 3.2.6: compared without case. Kernel and open-iscsi accept upper case and "_" too.
    """
    kind, name = text[:4].lower(), text[4:]
    short = kind in ("iqn.", "eui.", "naa.") and 0 < len(name) <= MAX_ISCSI_NAME - len(kind)
    return short and ALPHANUMERIC.union(".:_-").issuperset(name)


def is_nqn(text: str) -> bool:
    """Tell whether a text is the name of an NVMe subsystem or host: NVMe base 2.0, 4.5."""
    return (
        text.startswith(NQN)
        and len(NQN) < len(text) <= MAX_NQN
        and ALPHANUMERIC.union(".:_-").issuperset(text)
    )


def is_target_name(text: str) -> bool:
    """Tell whether a text is the name of an iSCSI target or of an NVMe subsystem."""
    return is_iscsi_name(text) or is_nqn(text)


def transport_of(target: str) -> Transport:
    """Return the transport of a target, which its name tells."""
    return "NVME" if target.startswith(NQN) else "ISCSI"


def nqn_prefix(prefix: str) -> str:
    """Return the prefix of the subsystems of a server, from that of its iSCSI targets."""
    return NQN + prefix[len(NQN) :]


def iqn_form(prefix: str) -> str:
    """Return the prefix of any target of a server as that of its iSCSI targets."""
    return "iqn." + prefix[len(NQN) :] if prefix.startswith(NQN) else prefix


def host_nqn(host: str, uid: str) -> str:
    """Return the NVMe name of a host for one volume.

    The kernel's target keeps one pair of keys for each host name, so two publications with one name
    would share their secrets: docs/decisions/0014-a-host-nqn-for-each-publication.md.
    """
    return f"{HOST_NQN}{host}:{uid}"


def host_id_of(host: str) -> str:
    """Return the id of an NVMe host name; the kernel refuses one id with two names."""
    from hashlib import sha256

    return uuid_of(sha256(host.encode()).hexdigest()[:32])


def nqn(name: str) -> str:
    """Return the name of an NVMe subsystem or host. Raises InvalidArgument."""
    if not is_nqn(name):
        raise InvalidArgument(f"{name[:223]!r} is not an NQN", reason="BAD_NQN")
    return name


def uuid_of(uid: str) -> str:
    """Return a uid as a UUID, by which NVMe identifies the namespace of a volume."""
    ends = (8, 12, 16, 20, 32)
    return "-".join(uid[start:end] for start, end in zip((0, *ends), ends, strict=False))


def is_object(text: str) -> bool:
    """Tell whether a text is the name of a backstore of the kernel's target."""
    starts = text[:1] in ALPHANUMERIC and len(text) <= MAX_OBJECT
    return starts and ALPHANUMERIC.union("._-").issuperset(text)


def is_uid(text: str) -> bool:
    """Tell whether a text is the uid of a volume or snapshot: 32 hexadecimal digits."""
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


def is_guid(text: str) -> bool:
    """Tell whether a text is a guid of ZFS: a number of 64 bits, in decimal digits."""
    return (
        0 < len(text) <= MAX_GUID
        and DIGITS.issuperset(text)
        and text[0] != "0"
        and int(text) < 1 << 64
    )


def is_uuid(text: str) -> bool:
    """Tell whether a text is a UUID in lower case."""
    parts = text.split("-")
    return [len(part) for part in parts] == UUID_LENGTHS and DIGITS.union("abcdef").issuperset(
        "".join(parts)
    )


def check_dataset(name: str) -> str:
    """Return the name of a dataset. Raises InvalidArgument."""
    if not is_dataset(name):
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
    if not is_iscsi_name(name):
        raise InvalidArgument(f"{name[:223]!r} is not an iSCSI name", reason="BAD_IQN")
    return name


def initiator_name(name: str) -> str:
    """Return the name of an initiator in the form that an ACL needs. Raises InvalidArgument.

    The kernel's target turns the name at a login into lower case (RFC 3720, 3.2.6.1) before it
    looks for the ACL.
    """
    if not is_iscsi_name(name):
        raise InvalidArgument(
            f"{name[:223]!r} is not an IQN; see /etc/iscsi/initiatorname.iscsi", reason="BAD_IQN"
        )
    return name.lower()


def target_of(prefix: str, uid: str, recorded: str = "", transport: Transport = "ISCSI") -> str:
    """Return the IQN or NQN of a volume's target; its length does not depend on the volume's id.

    It is the recorded one as long as the target exists: `prefix` is for a new one.
    """
    own = nqn_prefix(prefix) if transport == "NVME" else prefix
    return recorded or f"{own}:{uid}"


def parse_initiator_name(text: str) -> str:
    """Return the first IQN in the text of an initiatorname.iscsi that is not empty; "" if none.

    iscsid uses the same one (cfg_get_string_param() of open-iscsi), so the server sees it at login.
    """
    for line in text.splitlines():
        key, _equals, value = line.strip().partition("=")
        if key.strip() == "InitiatorName" and value.strip():
            return value.strip()
    return ""


def parse_host_nqn(text: str) -> str:
    """Return the NQN in the text of nvme-cli's hostnqn; "" if none. The first line counts."""
    name = text.partition("\n")[0].strip()
    return name if is_nqn(name) else ""


def portal_parts(portal: str) -> tuple[str, int]:
    """Return address and port of "10.0.0.1:3260" or "[fe80::1%eth0]:3260".

    An IPv6 address has its shortest form, in lower case: RFC 5952. Raises InvalidArgument for a
    host name too: a portal is an address.
    """
    host, _colon, digits = portal.rpartition(":")
    if len(digits) <= MAX_PORT_DIGITS and DIGITS.issuperset(digits) and digits[:1] not in ("", "0"):
        address, port = _address(host), int(digits)
        if address and port < 65536:
            return address, port
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


def seen_portal(address: str, port: str) -> str:
    """Return the portal that the kernel names, in its only form if it is one."""
    portal = join_portal(address, port)
    return check_portal(portal) if is_portal(portal) else portal


def overlap(one: str, other: str) -> bool:
    """Tell whether the kernel refuses to listen at one portal beside another one.

    "::" is the wildcard of both families: net.ipv6.bindv6only is 0 unless it was changed.
    """
    (address, port), (other_address, other_port) = portal_parts(one), portal_parts(other)
    pair = {address, other_address}
    same_family = (":" in address) == (":" in other_address)
    taken = len(pair) == 1 or "::" in pair or (same_family and ANY_IPV4 in pair)
    return port == other_port and taken


def at_port(portals: tuple[str, ...], port: int) -> tuple[str, ...]:
    """Return the portals with the addresses of these and another port, each once."""
    return tuple(dict.fromkeys(join_portal(portal_parts(one)[0], port) for one in portals))


def _address(host: str) -> str:
    """Return an IPv4 address, or an IPv6 address without its brackets; "" for any other text.

    An IPv6 address may have a scope, as in fe80::1%eth0, which names an interface: RFC 4007, 11. A
    mapped one (RFC 4291, 2.5.5.2) is the same address for the kernel as the IPv4 address in it.
    """
    from zfsilod.model.lean import socket

    bare, percent, scope = host[1:-1].partition("%")
    is_v6 = host[:1] == "[" and host[-1:] == "]"
    family, text = (socket.AF_INET6, bare) if is_v6 else (socket.AF_INET, host)
    valid = 0 < len(scope) <= MAX_SCOPE and ALPHANUMERIC.union("._-").issuperset(scope)
    if is_v6 and percent and not valid:
        return ""
    try:
        canonical = socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):  # ValueError: a NUL, or no UTF-8
        return ""
    ipv4 = canonical.removeprefix(MAPPED)
    if is_v6 and ipv4 != canonical and "." in ipv4:
        return "" if scope else ipv4
    return f"{canonical}{percent}{scope}" if is_v6 else canonical


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

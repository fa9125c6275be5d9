"""The options of a connect over NVMe/TCP, written to /dev/nvme-fabrics, and its outcome.

drivers/nvme/host/fabrics.c of the kernel reads the options and tells the outcome by errno.
"""

from __future__ import annotations

import errno
import os

from zfsilod.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import host_id_of, nqn, portal_parts

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap

FABRICS = "/dev/nvme-fabrics"
RECONNECT_DELAY_S = 2  # between attempts to connect a lost controller again
SECRETS = (
    "dhchap_secret",
    "dhchap_ctrl_secret",
)  # options of a connect, attributes of a controller
TLS = {"tls": ""}  # the kernel looks the PSK up by the names of host and subsystem
ANOTHER = {"duplicate_connect": ""}  # beside a controller of the same subsystem at the portal
REFUSED = {
    errno.EIO: "this host, or does not have the subsystem",
    errno.ENOKEY: "this host without a key",
    errno.EKEYREJECTED: "the key of this host, or failed to authenticate itself",
}
UNREACHABLE = (
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EADDRNOTAVAIL,
)


def connect_options(target: str, portal: str, chap: Chap, lost_session_s: int) -> dict[str, str]:
    """Return the options of a connect, with its secrets."""
    address, port = portal_parts(portal)
    return {
        "transport": "tcp",
        "traddr": address,
        "trsvcid": str(port),
        "nqn": target,
        "hostnqn": nqn(chap.username),
        "hostid": host_id_of(chap.username),
        "reconnect_delay": str(RECONNECT_DELAY_S),
        "ctrl_loss_tmo": str(lost_session_s or -1),
    } | (secret_options(chap) | (TLS if chap.has_tls else {}))


def send_options(fabrics: str, options: dict[str, str]) -> int:
    """Write the options of a connect, and return the errno; 0 when it is connected."""
    text = ",".join(f"{name}={value}" if value else name for name, value in options.items())
    try:
        descriptor = os.open(fabrics, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(
            f"{fabrics} cannot be opened: {error.strerror}", reason="NO_NVME"
        ) from error
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        os.close(descriptor)
    return 0


def secret_options(chap: Chap) -> dict[str, str]:
    """Return the keys by their options. Raises InvalidArgument, which never quotes them."""
    values = (chap.password.reveal(), chap.mutual_password.reveal())
    if any("," in value or not value.isprintable() for value in values):
        raise InvalidArgument("a key of the controller is not a key of DH-HMAC-CHAP")
    return dict(zip(SECRETS, values, strict=True))


def connect_error(number: int, target: str, portal: str, *, tls: bool = False) -> ZfsiloError:
    """Return the error for the outcome of a connect, with or without TLS."""
    name = errno.errorcode.get(number, str(number))
    facts = {"target": target, "portal": portal, "errno": name}
    if tls and number == errno.ESRCH:
        return FailedPrecondition(
            f"no tlshd answers the kernel of this host, so that {target} at {portal} cannot be "
            "connected with TLS: run zfsiloctl doctor",
            reason="NO_TLSHD",
            **facts,
        )
    if tls and number not in (errno.EKEYREJECTED, *UNREACHABLE):
        # Kernels before the middle of 2026 answer each failed handshake with EIO.
        refused = f" or the target refused {REFUSED[number]}" if number in REFUSED else ""
        return Unavailable(
            f"the handshake of TLS with {target} at {portal} failed{refused} "
            f"({os.strerror(number)}): the journal of tlshd has the cause, on this host or on the "
            "server; their keys may differ, or one of them has no tlshd (zfsiloctl doctor)",
            reason="NO_LOGIN",
            **facts,
        )
    if number in REFUSED:
        return PermissionDenied(
            f"the target {target} at {portal} refused {REFUSED[number]}",
            reason="LOGIN_REFUSED",
            **facts,
        )
    return Unavailable(
        f"the connect to {target} at {portal} failed: {os.strerror(number)}",
        reason="NO_LOGIN",
        **facts,
    )

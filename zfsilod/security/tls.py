"""TLS of the TCP sockets: version 1.3 only, this host's certificate, and the trusted authorities.

TLS ends in the gateway. grpc has no minimum version, no optional client certificates (a caller with
a token has none), and no way to close a connection after a revocation. The daemon reads the files
when they change and hands them to the gateway, so that a renewed certificate needs no restart.
"""

from __future__ import annotations

import logging
import os
import ssl
from typing import TYPE_CHECKING, Any

from zfsilod.security.certificates import identify
from zfsilod.security.join_file import Files

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.model.identity import Certified

log = logging.getLogger(__name__)

Material = dict[str, Any]
"""What the gateway needs: host (key and certificate), own and trusted authorities, in PEM."""


class TlsFiles:
    """The files of this host as a TLS server, in the daemon."""

    def __init__(self, directory: Path, imported_roles: tuple[str, ...] = ("host",)) -> None:
        self.files = Files(directory)
        self._imported_roles = imported_roles

    def stamps(self) -> object:
        """Return a value that differs when a file has changed."""
        paths = (self.files.host, self.files.authority, *self._trusted())
        return [_stamp(path) for path in paths]

    def material(self) -> Material:
        """Read the files; those that do not exist are empty."""
        return {
            "host": _text(self.files.host),
            "own": _text(self.files.authority),
            "trusted": [_text(path) for path in self._trusted()],
            "imported_roles": list(self._imported_roles),
        }

    def _trusted(self) -> list[Path]:
        return sorted(self.files.trusted.glob("*.pem"))


class ServerTls:
    """This host as a TLS server, in the gateway."""

    def __init__(self) -> None:
        self._own = b""
        self._imported_roles: tuple[str, ...] = ()
        self.context: ssl.SSLContext | None = None  # None: this host has no certificate

    def use(self, material: Material) -> None:
        """Use new certificates; when they cannot be loaded, the previous ones stay in use."""
        self._imported_roles = tuple(material["imported_roles"])
        try:
            self.context = _context(material) if material["host"] else None
            self._own = str(material["own"]).encode()
        except (OSError, ssl.SSLError) as error:
            log.error("cannot load the certificates of this host: %s", error)

    def identify(self, der: bytes) -> Certified:
        """Return the identity of a client's certificate. Raises Unauthenticated."""
        return identify(der, self._own, self._imported_roles)


def _context(material: Material) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The first that the client has: one of gRPC has h2 alone; others speak HTTP/1.1.
    context.set_alpn_protocols(["http/1.1", "h2"])
    load_pair(context, str(material["host"]))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # imported intermediates
    context.num_tickets = 0  # a resumed session would not be verified again
    for pem in (material["own"], *material["trusted"]):
        if pem:
            context.load_verify_locations(cadata=pem)
    return context


def load_pair(context: ssl.SSLContext, pem: str) -> None:
    """Load key and certificate from memory, for which ssl has files only."""
    with os.fdopen(os.memfd_create("zfsilo-host"), "wb") as file:
        file.write(pem.encode())
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        log.error("cannot read %s: %s", path, error)
        return ""


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (path.name, 0, 0)
    return (path.name, status.st_mtime_ns, status.st_ino)

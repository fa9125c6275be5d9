"""TLS on TCP: version 1.3 only, this host's certificate, and whose certificates are believed.

TLS ends in the door and not in grpc, which offers neither a lowest version nor client certificates
that may be left out (tokens need none), and does not tell when one was revoked. The files are read
anew when they change, so a renewed certificate needs no restart.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

from zfsilod.security.certificates import identify
from zfsilod.security.join_file import Files

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.model.identity import Certified

log = logging.getLogger(__name__)


class ServerTls:
    """This host as a TLS server."""

    def __init__(self, directory: Path, imported_roles: tuple[str, ...] = ("host",)) -> None:
        self.files = Files(directory)
        self._imported_roles = imported_roles
        self._stamps: object = None
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return what connections are served with; None: there is no certificate yet."""
        stamps = [_stamp(path) for path in (self.files.host, *self._authorities())]
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = self._load()
            except (OSError, ssl.SSLError) as error:  # what was served so far goes on
                log.error("the certificates in %s cannot be used: %s", self.files.directory, error)
        return self._context

    def identify(self, der: bytes) -> Certified:
        """Return whom a client's certificate stands for. Raises Unauthenticated."""
        own = self.files.authority
        return identify(der, own.read_bytes() if own.exists() else b"", self._imported_roles)

    def _authorities(self) -> list[Path]:
        return [self.files.authority, *sorted(self.files.trusted.glob("*.pem"))]

    def _load(self) -> ssl.SSLContext | None:
        if not self.files.host.exists():
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(self.files.host)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # imported intermediates
        context.num_tickets = 0  # a resumed session would not be verified again
        for path in self._authorities():
            if path.exists():
                context.load_verify_locations(path)
        return context


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (path.name, 0, 0)
    return (path.name, found.st_mtime_ns, found.st_ino)

"""TLS of clients that tests write themselves."""

from __future__ import annotations

import ssl
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.security.join_file import Access


def context_of(access: Access | None = None, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
    """Return a context that checks nothing, with the certificate of a join file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if access is not None and access.certificate:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(access.key + access.certificate)
            file.flush()
            context.load_cert_chain(file.name)
    return context

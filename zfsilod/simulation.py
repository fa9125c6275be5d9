"""A simulated host knows itself as a storage host, so the whole life of a volume can be tried.

It goes the way of every consumer: TLS over loopback, a token of role host, a file in servers.d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.auth import digest_of, new_token

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.certs import Certificate
    from zfsilod.service import Service

LISTEN = "127.0.0.1:0"
TOKEN_ID = "0" * 26  # always the same: each start takes the place of the one before


async def know_itself(service: Service, etc: Path, certificate: Certificate, address: str) -> None:
    """Write the file of this host's own server, and register there."""
    host_id = service.settings.host_id
    token, text = new_token("host", host_id)
    text = text.replace(token.id, TOKEN_ID)
    token = token.but(id=TOKEN_ID, digest=digest_of(text))
    await service.write(lambda txn: txn.put(token))
    path = etc / "servers.d" / f"{host_id}.toml"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(
        f'address = "{address}"\ntoken = "{text}"\n'
        f'certificate = """\n{certificate.certificate_pem.decode()}"""\n'
    )
    await service.introduce(host_id)

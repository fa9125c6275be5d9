"""Registers a simulated host as a client of itself, to try the whole life of a volume on one host.

Like every client it gets an authority, a certificate and a file in servers.d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod import config
from zfsilod.model.identity import Identity
from zfsilod.security import certificates, join_file

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.service.service import Service

LISTEN = "127.0.0.1:0"


async def know_itself(service: Service, etc: Path, files: join_file.Files, address: str) -> None:
    """Write the servers.d file of this host itself, and register the host there."""
    host_id = service.context.settings.host_id
    path = etc / "servers.d" / f"{host_id}.toml"
    access = config.find_server(etc, host_id)
    if access is None:
        identity = Identity(kind="host", id=host_id, role="host")
        if not files.authority.exists():
            files.write_authority(certificates.make_authority(host_id))
            files.write_host(certificates.issue(files.own_authority(), identity))
        pair = certificates.issue(files.own_authority(), identity)
        issued = certificates.record_of(pair.certificate_pem, identity)
        await service.context.write(lambda txn: txn.put(issued))
        access = join_file.Access(
            name=host_id,
            address="",
            tls_name=certificates.tls_name(host_id),
            authority=files.authority.read_text(),
            certificate=pair.certificate_pem.decode(),
            key=pair.key_pem.decode(),
        )
    access.address = address  # the port differs at each start
    join_file.write_server(path, access)
    await service.introduce(host_id)

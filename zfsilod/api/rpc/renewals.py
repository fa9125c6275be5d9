"""Service: certificates that are about to end, and their successors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2

from zfsilod.model.errors import PermissionDenied
from zfsilod.security import certificates

if TYPE_CHECKING:
    from zfsilod.api.rpc.calls import Call
    from zfsilod.model.records import Issued
    from zfsilod.security.join_file import Files


class Renewals:
    """RenewCertificate."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def RenewCertificate(
        self, message: service_pb2.RenewCertificateRequest, call: Call
    ) -> service_pb2.RenewCertificateResponse:
        found = call.caller.certificate
        if found is None or not found.own:
            raise PermissionDenied(
                "only who came with a certificate of this host's own authority is given another",
                reason="NOT_OURS",
            )

        def sign() -> tuple[bytes, bytes, Issued]:
            authority = self._files.own_authority()
            pem = certificates.sign_request(authority, found.identity, message.request.encode())
            return pem, authority.certificate_pem, certificates.record_of(pem, found.identity)

        pem, authority_pem, kept = await asyncio.to_thread(sign)
        await call.service.context.write(lambda txn: txn.put(kept))
        return service_pb2.RenewCertificateResponse(
            certificate=pem.decode(), authority=authority_pem.decode()
        )

"""Service: server information, capacity, status, orphans, secrets and certificates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2

from zfsilod import __version__
from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.api.rpc.volumes import need_view
from zfsilod.model.errors import PermissionDenied, Unavailable
from zfsilod.model.features import TLS
from zfsilod.model.pool_space import largest_volume, nearly_full
from zfsilod.model.zfs_properties import check_new
from zfsilod.requests import orphans
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.requests.volumes import need_root
from zfsilod.security import certificates
from zfsilod.security.credentials import check_caller
from zfsilod.security.issued import limit_certificates
from zfsilod.service.orphan_scan import find_orphans
from zfsilod.service.ownership import bind_machine
from zfsilod.service.status import MAX_ATTENTION, host_status
from zfsilod.wire import convert

if TYPE_CHECKING:
    from zfsilod.api.rpc.call import Call
    from zfsilod.model.records import Issued
    from zfsilod.security.join_file import Files
    from zfsilod.storage.transaction import Transaction

# Features that were added after the first version of v1.
FEATURES = ("snapshots", "snapshot-groups", "clones", "trash", "snapshot-blocks", TLS)


class ServiceMethods:
    """The methods of zfsilo.v1.Service."""

    def __init__(self, pages: Pages, files: Files) -> None:
        self._pages = pages
        self._files = files

    async def GetServerInfo(
        self, _request: service_pb2.GetServerInfoRequest, call: Call
    ) -> service_pb2.ServerInfo:
        return _server(call)

    async def GetCapacity(
        self, message: service_pb2.GetCapacityRequest, call: Call
    ) -> service_pb2.Capacity:
        settings = call.service.context.settings
        check_new(convert.as_pairs(message.properties), settings.volblocksize)
        need_root(settings)
        problem = await call.service.stats.pool_problem()
        try:
            space = await call.service.capacity(message.root)
        except Unavailable as error:
            raise (problem or error) from None
        available = space.available_bytes
        if message.HasField("thin"):
            promised = call.read(lambda txn: txn.promised())
            available = largest_volume(space, settings, promised, thin=message.thin)
        capacity = service_pb2.Capacity(available_bytes=available, total_bytes=space.total_bytes)
        if problem is not None:
            capacity.conditions.append(problem.message)
            capacity.condition_reasons.append(problem.reason)
        if condition := nearly_full(space, settings):
            capacity.conditions.append(condition)
            capacity.condition_reasons.append("POOL_NEARLY_FULL")
        return capacity

    async def GetStatus(
        self, _request: service_pb2.GetStatusRequest, call: Call
    ) -> service_pb2.Status:
        host = await call.shielded(host_status(call.service))
        status = service_pb2.Status(
            server=_server(call),
            root=host.root,
            promised_bytes=host.summary.promised_bytes,
            volumes=host.states,
            operations=host.summary.operations,
            publications=host.summary.publications.total(),
            hosts=host.summary.hosts,
            attention_count=len(host.attention),
            attention=[
                service_pb2.Attention(subject=a.subject, sentence=a.sentence, command=a.command)
                for a in host.attention[:MAX_ATTENTION]
            ],
        )
        if host.space:
            status.capacity.available_bytes = host.space.available_bytes
            status.capacity.total_bytes = host.space.total_bytes
        if host.space_condition:
            status.capacity.conditions.append(host.space_condition)
            status.capacity.condition_reasons.append("POOL_NEARLY_FULL")
        return status

    async def BindMachine(
        self, message: service_pb2.BindMachineRequest, call: Call
    ) -> service_pb2.ServerInfo:
        context, only = call.service.context, message.validate_only
        await call.shielded(bind_machine(context, cloned=message.cloned, validate_only=only))
        return _server(call)

    async def ListOrphans(
        self, message: service_pb2.ListOrphansRequest, call: Call
    ) -> service_pb2.ListOrphansResponse:
        page = self._pages.parse("ListOrphans", message)
        everything = await call.shielded(find_orphans(call.service.context))
        shown, after = collect(
            (orphan for orphan in everything if orphan.name > page.after),
            page,
            key=lambda orphan: orphan.name,
            wanted=lambda _orphan: True,
            show=lambda orphan: service_pb2.Orphan(
                name=orphan.name, text=orphan.text, users=orphan.users
            ),
        )
        return service_pb2.ListOrphansResponse(
            orphans=shown, next_page_token=self._pages.token(page, after)
        )

    async def RemoveOrphans(
        self, message: service_pb2.RemoveOrphansRequest, call: Call
    ) -> service_pb2.RemoveOrphansResponse:
        request = orphans.RemoveOrphans(names=tuple(message.names), force=message.force)
        operation = await call.change(request, validate_only=message.validate_only)
        return service_pb2.RemoveOrphansResponse(operation=operation)

    async def RotateSecrets(
        self, message: service_pb2.RotateSecretsRequest, call: Call
    ) -> service_pb2.RotateSecretsResponse:
        volume_id = convert.volume_id(message.volume)
        host_id = convert.host_id(message.host) if message.host else ""
        force = message.force
        if call.caller.role == "host":
            need_view(call, volume_id)
            host_id, force = call.caller.own_host(host_id), True  # its session continues
        request = RotateSecrets(volume=volume_id, host=host_id, force=force)
        operation = await call.change(request, validate_only=message.validate_only)
        return service_pb2.RotateSecretsResponse(operation=operation)

    async def RenewCertificate(
        self, message: service_pb2.RenewCertificateRequest, call: Call
    ) -> service_pb2.RenewCertificateResponse:
        current = call.caller.certificate
        if current is None or not current.own:
            raise PermissionDenied(
                "this server's authority did not issue the caller's certificate: renew it where it "
                "was issued",
                reason="NOT_OURS",
            )

        call.service.context.ownership.check_machine()

        def sign() -> tuple[bytes, bytes, Issued]:
            authority = self._files.own_authority()
            pem = certificates.sign_request(authority, current.identity, message.request.encode())
            return pem, authority.certificate_pem, certificates.record_of(pem, current.identity)

        pem, authority_pem, issued = await asyncio.to_thread(sign)
        if message.validate_only:
            return service_pb2.RenewCertificateResponse(authority=authority_pem.decode())

        def record(txn: Transaction) -> None:
            """Record the certificate, unless the caller was revoked while it was signed."""
            check_caller(txn, call.caller)
            limit_certificates(txn, issued, trusted)
            txn.put(issued)

        trusted = await call.service.context.retention.now()
        await call.service.context.write(record)
        return service_pb2.RenewCertificateResponse(
            certificate=pem.decode(), authority=authority_pem.decode()
        )


def _server(call: Call) -> service_pb2.ServerInfo:
    settings = call.service.context.settings
    info = service_pb2.ServerInfo(
        version=__version__,
        host=f"hosts/{settings.host_id}",
        roles=["server", "client"] if settings.root else ["client"],
        features=FEATURES,
        caller=str(call.caller),
        zone=settings.zone,
        max_attachments=settings.max_attachments,
        portals=settings.export.portals if settings.root else (),
        nvme_portals=settings.export.nvme_portals if settings.root else (),
        nvme_tls_portals=settings.export.portals_of("NVME", tls=True) if settings.root else (),
        nvme_cntlid_min=settings.export.nvme_cntlid_min if settings.root else 0,
        nvme_cntlid_max=settings.export.nvme_cntlid_max if settings.root else 0,
        holds=[
            service_pb2.Hold(reason=hold.reason, sentence=hold.sentence, command=hold.command)
            for hold in call.service.context.ownership.holds
        ],
    )
    info.time.GetCurrentTime()
    return info

"""HostService: registered hosts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import host_pb2

from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.model.records import Host
from zfsilod.model.validation import check_id
from zfsilod.requests import hosts as requests
from zfsilod.requests.volumes import need_host
from zfsilod.wire import convert

if TYPE_CHECKING:
    from zfsilod.api.rpc.call import Call
    from zfsilod.requests.request import Request

FIELDS = ("id", "iqn", "nqn", "labels")


class HostMethods:
    """The methods of zfsilo.v1.HostService."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def GetHost(self, message: host_pb2.GetHostRequest, call: Call) -> host_pb2.Host:
        host_id = convert.host_id(message.name)
        return convert.host(call.read(lambda txn: need_host(txn, host_id)))

    async def ListHosts(
        self, message: host_pb2.ListHostsRequest, call: Call
    ) -> host_pb2.ListHostsResponse:
        page = self._pages.parse("ListHosts", message)
        wanted = filters.parse(message.filter, FIELDS)
        hosts, after = await call.scan(
            lambda txn: collect(
                txn.scan(Host, page.after),
                page,
                key=lambda host: host.id,
                wanted=lambda host: wanted(partial(_values, host)),
                show=convert.host,
            )
        )
        return host_pb2.ListHostsResponse(
            hosts=hosts, next_page_token=self._pages.token(page, after)
        )

    async def CreateHost(
        self, message: host_pb2.CreateHostRequest, call: Call
    ) -> host_pb2.MutateHostResponse:
        request = _create(check_id(message.host_id, "host id"), message.host, register=False)
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def UpdateHost(
        self, message: host_pb2.UpdateHostRequest, call: Call
    ) -> host_pb2.MutateHostResponse:
        host = message.host
        request = requests.UpdateHost(
            id=convert.host_id(host.name),
            mask=tuple(message.update_mask.paths),
            iqn=host.iqn,
            nqn=host.nqn,
            addresses=tuple(host.addresses),
            labels=convert.as_pairs(host.labels),
            max_attachments=host.max_attachments,
            machine=host.machine,
            etag=message.etag,
        )
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def DeleteHost(
        self, message: host_pb2.DeleteHostRequest, call: Call
    ) -> host_pb2.MutateHostResponse:
        request = requests.DeleteHost(id=convert.host_id(message.name), etag=message.etag)
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def RegisterHost(
        self, message: host_pb2.RegisterHostRequest, call: Call
    ) -> host_pb2.MutateHostResponse:
        named = convert.host_id(message.host.name) if message.host.name else ""
        request = _create(call.caller.own_host(named), message.host, register=True)
        context = call.service.context
        known = call.read(lambda txn: request.known(context.view(txn, "", call.caller)))
        if known is not None and not message.validate_only:
            return host_pb2.MutateHostResponse(host=convert.host(known))
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def IntroduceHost(
        self, message: host_pb2.IntroduceHostRequest, call: Call
    ) -> host_pb2.IntroduceHostResponse:
        server = check_id(message.server, "server name")
        introducing = call.service.introduce(server, validate_only=message.validate_only)
        call.changed = await call.shielded(introducing)
        return host_pb2.IntroduceHostResponse()


def _create(host_id: str, host: host_pb2.Host, *, register: bool) -> requests.CreateHost:
    return requests.CreateHost(
        id=host_id,
        iqn=host.iqn,
        nqn=host.nqn,
        addresses=tuple(host.addresses),
        labels=convert.as_pairs(host.labels),
        max_attachments=host.max_attachments,
        register=register,
    )


async def _change(
    call: Call, request: Request[Any], host_id: str, *, validate_only: bool
) -> host_pb2.MutateHostResponse:
    operation = await call.change(request, validate_only=validate_only)
    response = host_pb2.MutateHostResponse(operation=operation)
    record = None if validate_only else call.read(lambda txn: txn.get(Host, host_id))
    if record is not None:
        response.host.CopyFrom(convert.host(record))
    return response


def _values(host: Host, field: str) -> filters.Values:
    """Return the values of a field in FIELDS."""
    match field:
        case "id" | "iqn" | "nqn":
            return (str(getattr(host, field)),)
    return filters.label_values(dict(host.labels), field)

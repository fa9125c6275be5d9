"""OperationService: running and finished operations."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from zfsilo.v1 import operation_pb2

from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.model.errors import DeadlineExceeded, InvalidArgument
from zfsilod.model.records import Operation
from zfsilod.model.words import OperationState
from zfsilod.wire import convert

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zfsilod.api.rpc.call import Call

FIELDS = ("id", "kind", "subject", "state", "caller")
ENUMERATIONS = {"state": get_args(OperationState)}


class OperationMethods:
    """The methods of zfsilo.v1.OperationService."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def GetOperation(
        self, message: operation_pb2.GetOperationRequest, call: Call
    ) -> operation_pb2.Operation:
        operation_id = convert.operation_id(message.name)
        shown = convert.operation(call.service.operation(operation_id))
        if (sent := call.service.replicator.transfers.get(operation_id)) is not None:
            shown.transfer.CopyFrom(convert.transfer(sent))
        return shown

    async def ListOperations(
        self, message: operation_pb2.ListOperationsRequest, call: Call
    ) -> operation_pb2.ListOperationsResponse:
        page = self._pages.parse("ListOperations", message)
        wanted = filters.parse(message.filter, FIELDS, ENUMERATIONS)
        operations, after = await call.scan(
            lambda txn: collect(
                txn.scan(Operation, page.after),
                page,
                key=lambda operation: operation.id,
                wanted=lambda operation: wanted(partial(_values, operation)),
                show=convert.operation,
            )
        )
        return operation_pb2.ListOperationsResponse(
            operations=operations, next_page_token=self._pages.token(page, after)
        )

    async def WaitOperation(
        self, message: operation_pb2.WaitOperationRequest, call: Call
    ) -> operation_pb2.Operation:
        operation_id = convert.operation_id(message.name)
        timeout_s = call.left_s
        if message.HasField("timeout"):
            timeout_s = min(timeout_s, message.timeout.ToTimedelta().total_seconds())
        try:
            return convert.operation(await call.service.ended(operation_id, max(0.0, timeout_s)))
        except DeadlineExceeded:
            return convert.operation(call.service.operation(operation_id))

    async def WatchOperations(
        self, message: operation_pb2.WatchOperationsRequest, call: Call
    ) -> AsyncIterator[operation_pb2.WatchOperationsResponse]:
        if message.after_revision < 0:
            raise InvalidArgument("after_revision is negative", reason="BAD_REVISION")
        wanted = filters.parse(message.filter, FIELDS, ENUMERATIONS)
        changes: Any = call.service.watch(message.after_revision)
        async with aclosing(changes):
            async for operation in changes:
                if wanted(partial(_values, operation)):
                    shown = convert.operation(operation)
                    yield operation_pb2.WatchOperationsResponse(operation=shown)

    async def CancelOperation(
        self, message: operation_pb2.CancelOperationRequest, call: Call
    ) -> operation_pb2.Operation:
        operation_id = convert.operation_id(message.name)
        work = call.service.cancel(operation_id, validate_only=message.validate_only)
        return convert.operation(await call.shielded(work))

    async def RepairOperation(
        self, message: operation_pb2.RepairOperationRequest, call: Call
    ) -> operation_pb2.Operation:
        operation_id = convert.operation_id(message.name)
        work = call.service.repair(operation_id, validate_only=message.validate_only)
        return convert.operation(await call.shielded(work))

    async def AbandonOperation(
        self, message: operation_pb2.AbandonOperationRequest, call: Call
    ) -> operation_pb2.Operation:
        operation_id = convert.operation_id(message.name)
        work = call.service.abandon(operation_id, validate_only=message.validate_only)
        return convert.operation(await call.shielded(work))


def _values(operation: Operation, field: str) -> filters.Values:
    """Return the value of a field in FIELDS."""
    return (str(getattr(operation, field)),)

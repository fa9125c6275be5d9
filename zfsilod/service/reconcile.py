"""Reconciles facts with records after a crash, a reboot or a manual change."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.model.errors import NotFound, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.record import Pairs, Record, pairs
from zfsilod.model.records import Attachment, Operation, Volume
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.open_ports import OpenPorts, target_at_shared_ports
from zfsilod.requests.sync import SyncVolume
from zfsilod.service.drift import UNKNOWN, DriftReport, compare_all, store_conditions
from zfsilod.service.export_names import record_names
from zfsilod.service.ownership import compare
from zfsilod.service.port_gate import opens_ports
from zfsilod.storage.volume_view import VolumeView, volume_view, volume_views

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from zfsilod.model.identity import Caller
    from zfsilod.requests.context import Context
    from zfsilod.service.port_gate import PortGate
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

SYNC_DEADLINE_S = 120.0
BATCH = 500  # operations in one unit
UNITS_AT_ONCE = 4

log = logging.getLogger(__name__)


class SyncReport(Record):
    """The result of a sync of all volumes."""

    volumes: int  # that were compared
    reports: tuple[DriftReport, ...] = ()  # of those that differ
    complaints: Pairs = ()  # by volume: the problem that prevented its repair
    unfinished: bool = False  # a volume was in an operation, failed or could not be probed


class Reconciler:
    """Compares volumes with the host, and submits the repairs."""

    def __init__(self, context: Context, submitter: Submitter, gate: PortGate) -> None:
        self._context = context
        self._submitter = submitter
        self._gate = gate
        self.ask: Callable[[], Awaitable[object]] = _nobody_asks  # which volumes may be served

    async def report(self, volume_id: str, *, store: bool = True) -> DriftReport:
        """Return the differences of a volume; none while an operation works on it."""
        reports = await compare_all(self._context, (volume_id,))
        if not reports:
            return DriftReport(volume=volume_id, uid="")
        if store:
            await self._context.write(
                partial(store_conditions, reports=reports, failed={}, repaired=False)
            )
        return reports[0]

    async def sync(self, volume_id: str, *, caller: Caller) -> tuple[Operation, DriftReport]:
        """Submit the sync of one volume; return its operation and the differences.

        Raises the first problem that cannot be repaired, like a lost zvol or a conflict.
        """
        report = await self.report(volume_id)
        report.check()
        operation = await self._submitter.submit(SyncVolume(id=volume_id), caller=caller)
        return operation, report

    async def sync_all(self, caller: Caller, *, validate_only: bool = False) -> SyncReport:
        """Compare every volume and repair the differences; one failure does not stop the others."""
        ownership = self._context.ownership
        await compare(self._context)  # the pool may have been imported since the last time
        ownership.check_machine()
        held = ownership.pool
        if held is not None and caller != DAEMON and not validate_only:
            raise held.error()
        if held is None:
            await record_names(self._context)
            if not validate_only:
                await self.ask()  # what may be served is exported with the others
        reports = await compare_all(self._context)
        if held is not None:  # the records of its volumes prove nothing about the pool
            reports = self._attached_only(reports)
        with self._context.read() as txn:
            idle = sum(_is_idle(txn, view) for view in volume_views(txn))
        complaints = _problems(reports)
        failed: dict[str, str] = {}
        if not validate_only:
            first = not self._gate.is_open and held is None and self._knows_a_shared(reports)
            failed = await self._repair_reported(reports, caller, first=first)
            complaints |= failed
        differing = tuple(report for report in reports if report.differences)
        unknown = any(
            problem.reason == UNKNOWN for report in differing for problem in report.problems
        )
        return SyncReport(
            volumes=len(reports),
            reports=differing,
            complaints=pairs(complaints),
            unfinished=idle > len(reports) or bool(failed) or unknown,
        )

    async def sync_some(self, names: tuple[str, ...], caller: Caller) -> dict[str, str]:
        """Compare and repair some volumes; return the problems that are left, by volume."""
        if not self._gate.is_open:
            return dict.fromkeys(names, "the exports of all volumes are being restored")
        with self._context.read() as txn:
            known = {view.id for view in volume_views(txn)}
        if not known.intersection(names):
            return {}  # deleted meanwhile
        self._context.ownership.check_machine()
        reports = await compare_all(self._context, tuple(filter(known.__contains__, names)))
        if self._context.ownership.pool is not None:
            reports = self._attached_only(reports)
        return _problems(reports) | await self._repair_reported(reports, caller)

    def _attached_only(self, reports: list[DriftReport]) -> list[DriftReport]:
        """Return the reports of the volumes that this host does not serve itself."""
        with self._context.read() as txn:
            return [report for report in reports if txn.get(Volume, report.volume) is None]

    def _knows_a_shared(self, reports: list[DriftReport]) -> bool:
        """Tell whether the pool answers for a target at shared ports, if there is one."""
        shared = set(self._sharing([report.volume for report in reports]))
        known = [not report.unknown for report in reports if report.volume in shared]
        return any(known) or not known

    async def _repair_reported(
        self, reports: list[DriftReport], caller: Caller, *, first: bool = False
    ) -> dict[str, str]:
        """Repair what can be, store the conditions, and return the repairs that failed."""
        repairable = [report.volume for report in reports if report.repairable]
        if first:
            repairable += self._busy({report.volume for report in reports})
        failed = await self._repair(repairable, caller, first=first)
        await self._context.write(partial(store_conditions, reports=reports, failed=failed))
        return {name: error.message for name, error in failed.items()}

    def _busy(self, compared: set[str]) -> list[str]:
        """Return the volumes at shared ports that an operation kept from the comparison.

        Their exports have to be there before the ports open. Those whose operation may open the
        ports itself wait for that: it is resumed afterwards.
        """
        with self._context.read() as txn:
            busy = [view for view in volume_views(txn) if view.id not in compared]
            names = [view.id for view in busy if _is_idle(txn, view) and not _opens(txn, view)]
        return self._sharing(names)

    async def _repair(
        self, names: list[str], caller: Caller, *, first: bool = False
    ) -> dict[str, ZfsiloError]:
        """Repair the served volumes in few units, then the attached ones, a few at a time.

        Return the repairs that failed.
        In this order, so that a host that uses its own volumes finds them exported. `first`: the
        first pass after the start; when all exports are there, any request may open ports.
        """
        with self._context.read() as txn:
            attached = [name for name in names if txn.get(Attachment, name)]
            served = [name for name in names if txn.get(Volume, name)]
        exported = served if first else [name for name in served if name not in set(attached)]
        failed = await self._export(exported, caller)
        if first:
            self._gate.open()
        logins = await self._run_each([SyncVolume(id=name) for name in attached], caller)
        return failed | logins

    async def _export(self, names: list[str], caller: Caller) -> dict[str, ZfsiloError]:
        """Repair served volumes in few units; return the repairs that failed.

        Targets that share their ports listen when all of them are ready.
        """
        shared = self._sharing(names)
        together = shared if len(shared) > 1 or not self._gate.is_open else []
        rest = [name for name in names if name not in set(together)]
        failed = await self._run([SyncVolume(id=name, opens=False) for name in together], caller)
        ready = tuple(name for name in together if name not in failed)
        if ready and not await self._open(ready, caller):
            rest += ready  # one by one, so that each has its own outcome
        return failed | await self._run([SyncVolume(id=name) for name in rest], caller)

    async def _open(self, names: tuple[str, ...], caller: Caller) -> bool:
        """Let the targets of all these volumes listen at the same moment; tell whether they do."""
        try:
            operation = await self._submitter.submit(OpenPorts(ids=names), caller=caller)
        except ZfsiloError as error:
            log.warning("the ports of %d volumes were not opened: %s", len(names), error.message)
            return False
        return not await self._failure(operation)

    def _sharing(self, names: list[str]) -> list[str]:
        """Return those of these volumes whose targets share their ports."""
        settings = self._context.settings
        with self._context.read() as txn:
            views = [volume_view(txn, name) for name in names]
        return [view.id for view in views if target_at_shared_ports(view, settings)]

    async def _run(self, requests: Sequence[SyncVolume], caller: Caller) -> dict[str, ZfsiloError]:
        """Carry requests out, many in one unit; return the failures by volume."""
        failed: dict[str, ZfsiloError] = {}
        done: set[str] = set()
        for start in range(0, len(requests), BATCH):
            some = requests[start : start + BATCH]
            for operation in await self._submitter.submit_batch(some, caller=caller):
                done.add(operation.subject.partition("/")[2])
                failed |= await self._failure(operation)
        # A volume in another operation waits for its end; a nearly full store takes few at once.
        left = [request for request in requests if request.id not in done]
        return failed | await self._run_each(left, caller)

    async def _run_each(
        self, requests: Sequence[SyncVolume], caller: Caller
    ) -> dict[str, ZfsiloError]:
        """Carry requests out, a few at a time, each in its unit; return the failures by volume."""
        gate = asyncio.Semaphore(UNITS_AT_ONCE)

        async def run(request: SyncVolume) -> dict[str, ZfsiloError]:
            async with gate:
                try:
                    operation = await self._submitter.submit(request, caller=caller)
                except NotFound:  # deleted since the comparison
                    return {}
                except ZfsiloError as error:
                    return {request.id: error}
                return await self._failure(operation)

        failed: dict[str, ZfsiloError] = {}
        for failure in await asyncio.gather(*map(run, requests)):
            failed |= failure
        return failed

    async def _failure(self, operation: Operation) -> dict[str, ZfsiloError]:
        name = operation.subject.partition("/")[2]
        try:
            await self._submitter.wait(operation.id, SYNC_DEADLINE_S)
        except ZfsiloError as error:
            log.warning("sync of %s: %s", name, error.message)
            return {name: error}
        return {}

    async def clear_leftovers(self, caller: Caller) -> None:
        """After a reboot, remove the leftovers of attachments that zfsilo does not restore.

        The reboot ended sessions and mounts; node records, mount points and records remain.
        """
        with self._context.read() as txn:
            attachments = [
                attachment for attachment in txn.scan(Attachment) if attachment.restore == "NEVER"
            ]
        for attachment in attachments:
            if attachment.boot_id in ("", self._context.boot_id):
                continue  # of this boot, or of a version that did not record it
            request = Disconnect(id=attachment.id, force=True, boot_id=attachment.boot_id)
            try:
                operation = await self._submitter.submit(request, caller=caller)
                await self._submitter.wait(operation.id, SYNC_DEADLINE_S)
            except ZfsiloError as error:
                log.warning("leftovers of %s stay: %s", attachment.id, error.message)


async def _nobody_asks() -> None:
    """Ask no peer: of a service without one that does."""


def _problems(reports: list[DriftReport]) -> dict[str, str]:
    """Return the first problem of each volume that has one."""
    return {report.volume: report.problems[0].problem for report in reports if report.problems}


def _opens(txn: Transaction, view: VolumeView) -> bool:
    """Tell whether the operation on a volume may open the ports itself."""
    operation = txn.get(Operation, view.operation) if view.operation else None
    return operation is not None and opens_ports(operation.actions)


def _is_idle(txn: Transaction, view: VolumeView) -> bool:
    """Tell whether a volume is idle, or will be soon: no operation on it needs repair."""
    operation = txn.get(Operation, view.operation) if view.operation else None
    return operation is None or operation.state != "NEEDS_REPAIR"

"""Background tasks: the periodic sync, the units of detached volumes, the end at a shutdown."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from zfsilod.model.errors import ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Attachment
from zfsilod.requests.detach import EndWait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zfsilod.model.records import Operation
    from zfsilod.service.reconcile import SyncReport
    from zfsilod.service.service import Service
    from zfsilod.systemd.launcher import SystemdLauncher

FIRST_RETRY_S = 15  # after an unfinished sync: a pool that is not imported yet
LAST_RETRY_S = 600  # the delay doubles up to this
SHUTDOWN_S = 75  # less than TimeoutStopSec= of the unit
DETACHING = ("detach", "disconnect", "unpublish", "delete")

log = logging.getLogger(__name__)


async def reconcile_all(
    service: Service, interval_s: int, reported: Callable[[SyncReport], Awaitable[None]]
) -> None:
    """Reconcile all volumes at start, then every `interval_s` seconds (0: only at start).

    An unfinished sync is retried sooner. A complaint is logged when it changes.
    """
    logged: tuple[tuple[str, str], ...] = ()
    refused = ""
    retry_s = FIRST_RETRY_S
    cleared, lifted = False, service.context.lifted
    while True:
        unfinished = True
        lifted.clear()
        try:
            service.context.ownership.check_machine()
            if not cleared:
                await service.reconciler.clear_leftovers(caller=DAEMON)
            cleared = True
            report = await service.reconciler.sync_all(DAEMON)
        except ZfsiloError as error:
            if error.message != refused:
                log.warning("cannot compare the volumes with their records: %s", error.message)
            refused = error.message
        else:
            for name, complaint in report.complaints if report.complaints != logged else ():
                log.warning("volume %s differs from its record: %s", name, complaint)
            logged, unfinished = report.complaints, report.unfinished
            await reported(report)
        if not unfinished and not interval_s:
            return
        pause_s = min(retry_s, interval_s or LAST_RETRY_S) if unfinished else interval_s
        with suppress(TimeoutError):
            await asyncio.wait_for(lifted.wait(), pause_s)
        retry_s = min(2 * retry_s, LAST_RETRY_S) if unfinished else FIRST_RETRY_S


async def prepare_shutdown(
    service: Service, is_shutting_down: Callable[[], Awaitable[bool]]
) -> None:
    """End the waiting for lost sessions when this host is shutting down.

    Units of volumes have ended by now; these are sessions of Kubernetes and of manual commands.
    """
    try:
        if not await is_shutting_down():
            return
    except ZfsiloError as error:
        log.warning("it is not known whether this host is shutting down: %s", error.message)
        return
    with service.context.read() as txn:
        names = [one.id for one in txn.scan(Attachment) if one.state != "ABSENT"]
    with suppress(TimeoutError):
        async with asyncio.timeout(SHUTDOWN_S):
            await asyncio.gather(*(_end_wait(service, name) for name in names))


async def _end_wait(service: Service, name: str) -> None:
    try:
        operation = await service.submit(EndWait(id=name), caller=DAEMON)
        await service.wait(operation.id, SHUTDOWN_S)
    except ZfsiloError as error:
        log.warning("I/O of %s may wait for its server: %s", name, error.message)


def stop_unit(service: Service, launcher: SystemdLauncher, operation: Operation) -> None:
    """Stop zfsilo-volume@NAME after an operation that detached or withdrew its volume."""
    if operation.kind in DETACHING and operation.state == "DONE":
        with service.context.read() as txn:
            attachment = txn.get(Attachment, operation.subject.partition("/")[2])
        if operation.kind == "detach" and attachment is not None:
            return  # down to another state
        service.executor.spawn(launcher.stop_volume(operation.subject.partition("/")[2]))

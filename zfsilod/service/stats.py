"""Volume usage and health, sampled on demand with a deadline.

A filesystem whose disk is lost may block its reader for ever. Therefore each is read in a separate
thread with a deadline, and not again while that thread blocks.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.host.transports import session_problems
from zfsilod.model.errors import Unavailable, ZfsiloError
from zfsilod.model.records import Attachment
from zfsilod.service.session_problems import DEGRADED, SessionProblems

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.host_facts import SessionProblem
    from zfsilod.model.records import Volume
    from zfsilod.requests.context import Context
    from zfsilod.storage.volume_view import VolumeView

    Figures = dict[str, int]

ANSWER_S = 5.0
SERVER_S = 5.0
LISTING_S = 3.0  # that a list of volumes waits for what they use
BLOCKS = "the filesystem of {name} does not answer: its disk may be lost"


class Stats(NamedTuple):
    """The known figures by name, and the problems."""

    figures: Figures
    problems: tuple[ZfsiloError, ...] = ()


class StatsReader:
    """Samples volumes; remembers which filesystems block their reader."""

    def __init__(self, context: Context) -> None:
        self.session_problems = SessionProblems(context)
        self._context = context
        self._blocking: set[str] = set()
        self._listing: asyncio.Task[dict[str, int]] | None = None  # that runs, or ran last

    async def sample(self, view: VolumeView) -> Stats:
        """Return the figures of a volume: of its filesystem when staged, else of its zvol."""
        attachment, volume = view.attachment, view.volume
        problem = await self.pool_problem() if volume is not None else None
        pool = (problem,) if problem else ()
        if attachment is not None and attachment.state in ("STAGED", "MOUNTED"):
            stats = await self._of_attachment(attachment)
        elif volume is not None:
            stats = await self._of_zvol(volume, pool)
        else:
            assert attachment is not None
            figures = {"volsize": attachment.disk.size_bytes}
            stats = Stats(figures=figures, problems=await self._session(attachment))
        return stats._replace(problems=(*pool, *stats.problems))

    async def usages(self) -> dict[str, int]:
        """Return the bytes that each zvol uses, by dataset; none while the pool does not answer.

        One listing runs at a time; calls that come meanwhile share it.
        """
        if self._listing is None or self._listing.done():
            self._listing = asyncio.create_task(self._list_usages())
        try:
            async with asyncio.timeout(LISTING_S):
                return await asyncio.shield(self._listing)
        except TimeoutError:
            return {}

    async def _list_usages(self) -> dict[str, int]:
        zfs, root = self._context.machine.zfs, self._context.settings.root
        try:
            rows = await self._context.look(partial(zfs.usages, root))
        except ZfsiloError:  # status and metrics say why
            return {}
        return {dataset: used for dataset, (_size, used, _referenced) in rows.items()}

    async def pool_problem(self) -> ZfsiloError | None:
        """Return the problem of the pool of a server."""
        zfs, root = self._context.machine.zfs, self._context.settings.root
        return await self._context.look(partial(zfs.pool_problem, root))

    async def _of_zvol(self, volume: Volume, pool: tuple[ZfsiloError, ...]) -> Stats:
        """Return the figures of a zvol. Fails without them only while its pool has no problem."""
        try:
            question = partial(self._context.machine.zfs.usage, volume.dataset)
            return Stats(figures=await self._context.look(question))
        except ZfsiloError as error:
            if not pool:
                raise
            known = [problem.message for problem in pool]
            return Stats(figures={}, problems=() if error.message in known else (error,))

    async def broken_sessions(self) -> dict[str, str]:
        """Return the problems of the sessions of idle attachments, by attachment."""
        with self._context.read() as txn:
            attachments = [
                attachment
                for attachment in txn.scan(Attachment)
                if attachment.state != "ABSENT" and not txn.claimant(f"attachment/{attachment.id}")
            ]
        problems = await self._session_problems(attachments)
        return self.session_problems.describe(attachments, problems)

    async def _of_attachment(self, attachment: Attachment) -> Stats:
        if attachment.mode == "BLOCK":
            figures = await self._of_device(attachment)
            return Stats(figures=figures, problems=await self._session(attachment))
        mounts, path = self._context.machine.mounts, attachment.staging_path
        problem = await self._context.look(
            partial(mounts.problem, path, readonly=attachment.stage_readonly)
        )
        problems = (problem,) if problem else await self._session(attachment)
        question = partial(mounts.stats, path)
        try:
            figures = await sample_blocking(question, attachment.id, self._blocking)
        except ZfsiloError as error:
            return Stats(figures={}, problems=(*problems, error))
        return Stats(figures=figures, problems=problems)

    async def _of_device(self, attachment: Attachment) -> Figures:
        """Return the size of a raw device, and the bytes in use as its server reports them."""
        figures = {"volsize": attachment.disk.size_bytes}
        try:
            usage = await self._context.servers.usage(
                attachment.server, attachment.volume, timeout_s=SERVER_S
            )
        except ZfsiloError:
            return figures  # the size is known without the server
        return figures | {"referenced": usage["referenced"]}

    async def _session(self, attachment: Attachment) -> tuple[ZfsiloError, ...]:
        problems = await self._session_problems([attachment])
        problem = problems.get(attachment.disk.target)
        degraded = problem is not None and problem.fault in DEGRADED
        reason = problem.fault if problem is not None and degraded else "SESSION_LOST"
        sentences = self.session_problems.describe([attachment], problems).values()
        return tuple(Unavailable(sentence, reason=reason) for sentence in sentences)

    async def _session_problems(self, attachments: list[Attachment]) -> dict[str, SessionProblem]:
        disks = [attachment.disk for attachment in attachments]
        return await self._context.look(partial(session_problems, self._context.machine, disks))


async def sample_blocking(
    question: Callable[[], Figures], name: str, blocking: set[str]
) -> Figures:
    """Call a function that may block, in a thread. Raises Unavailable after a deadline.

    `blocking`: the names whose threads have not returned yet.
    """
    if name in blocking:
        raise Unavailable(BLOCKS.format(name=name), reason="FILESYSTEM_HANGS")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Figures] = loop.create_future()

    def ask() -> None:
        try:
            result: Figures | ZfsiloError = question()
        except ZfsiloError as error:
            result = error
        except OSError as error:
            result = Unavailable(
                f"the filesystem of {name} fails: {error.strerror}", reason="FILESYSTEM_FAILS"
            )
        blocking.discard(name)
        _deliver(loop, answer, result)

    blocking.add(name)
    threading.Thread(target=ask, name=f"stats {name}", daemon=True).start()
    done, _pending = await asyncio.wait({answer}, timeout=ANSWER_S)
    if not done:
        answer.cancel()
        raise Unavailable(BLOCKS.format(name=name), reason="FILESYSTEM_HANGS")
    return answer.result()


def _deliver(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[Figures],
    result: Figures | ZfsiloError,
) -> None:
    """Pass the result from the thread to its waiter in the event loop."""

    def pass_on() -> None:
        if answer.done():
            return
        if isinstance(result, ZfsiloError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    if not loop.is_closed():
        loop.call_soon_threadsafe(pass_on)

"""How full a volume is, and how well: looked at now, with a deadline.

A filesystem whose disk is gone may hang whoever asks it, for ever. So each is asked in a thread of
its own that nobody waits for longer than a few seconds, and not again while that thread hangs.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.errors import Unavailable, ZfsiloError
from zfsilod.model.records import Attachment

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.records import Volume
    from zfsilod.service.service import Service
    from zfsilod.storage.volume_view import VolumeView

ANSWER_S = 5.0
SERVER_S = 5.0
HANGS = "the filesystem of {name} does not answer: its disk may be gone"


class Stats(NamedTuple):
    """Figures by name, of those that are known here; and what is wrong, one sentence each."""

    figures: dict[str, int]
    conditions: tuple[str, ...] = ()


async def stats(service: Service, found: VolumeView) -> Stats:
    """Return a volume's figures: of its filesystem where it is staged, else of its zvol."""
    here, volume = found.attachment, found.volume
    if here is not None and here.state in ("STAGED", "MOUNTED"):
        return await _of_attachment(service, here)
    if volume is not None:
        return await _of_volume(service, volume)
    assert here is not None
    return Stats(
        figures={"volsize": here.disk.size_bytes}, conditions=await _session(service, here)
    )


async def _of_volume(service: Service, volume: Volume) -> Stats:
    figures = await service.look(partial(service.machine.zfs.usage, volume.dataset))
    problem = await service.look(partial(service.machine.zfs.pool_problem, service.settings.root))
    return Stats(figures=figures, conditions=(problem,) if problem else ())


async def _of_attachment(service: Service, here: Attachment) -> Stats:
    if here.mode == "BLOCK":
        figures, problems = await _of_device(service, here), await _session(service, here)
        return Stats(figures=figures, conditions=problems)
    problems = await _mount(service, here) or await _session(service, here)
    try:
        question = partial(service.machine.mounts.stats, here.staging_path)
        figures = await asked(question, here.id, service.hanging)
    except ZfsiloError as error:
        return Stats(figures={}, conditions=(*problems, error.message))
    return Stats(figures=figures, conditions=problems)


async def _of_device(service: Service, here: Attachment) -> dict[str, int]:
    """Return the size of a raw device, and what its server says is written of it."""
    figures = {"volsize": here.disk.size_bytes}
    try:
        usage = await service.servers.usage(here.server, here.volume, timeout_s=SERVER_S)
    except ZfsiloError:
        return figures  # the server's state is no business of those who only want the size
    return figures | {"referenced": usage["referenced"]}


async def broken_sessions(service: Service) -> dict[str, str]:
    """Return what is wrong now with the sessions of used volumes, by volume."""
    with service.store.read() as txn:
        used = [
            each
            for each in txn.scan(Attachment)
            if each.state != "ABSENT" and not txn.claimant(f"attachment/{each.id}")
        ]
    iscsi = service.machine.iscsi
    found = await service.look(lambda: {each.id: iscsi.problem(each.disk) for each in used})
    return {name: problem for name, problem in found.items() if problem}


async def _session(service: Service, here: Attachment) -> tuple[str, ...]:
    problem = await service.look(partial(service.machine.iscsi.problem, here.disk))
    return (problem,) if problem else ()


async def _mount(service: Service, here: Attachment) -> tuple[str, ...]:
    problem = await service.look(
        partial(service.machine.mounts.problem, here.staging_path, readonly=here.stage_readonly)
    )
    return (problem,) if problem else ()


async def asked(
    question: Callable[[], dict[str, int]], name: str, hanging: set[str]
) -> dict[str, int]:
    """Ask something that may hang. Raises Unavailable when there is no answer in time.

    `hanging`: the names that a thread is asking for at the moment.
    """
    if name in hanging:
        raise Unavailable(HANGS.format(name=name), reason="FILESYSTEM_HANGS")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[dict[str, int]] = loop.create_future()

    def ask() -> None:
        try:
            found: dict[str, int] | ZfsiloError = question()
        except ZfsiloError as error:
            found = error
        except OSError as error:
            found = Unavailable(
                f"the filesystem of {name} fails: {error.strerror}", reason="FILESYSTEM_FAILS"
            )
        hanging.discard(name)
        _tell(loop, answer, found)

    hanging.add(name)
    threading.Thread(target=ask, name=f"stats {name}", daemon=True).start()
    done, _pending = await asyncio.wait({answer}, timeout=ANSWER_S)
    if not done:
        answer.cancel()
        raise Unavailable(HANGS.format(name=name), reason="FILESYSTEM_HANGS")
    return answer.result()


def _tell(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[dict[str, int]],
    found: dict[str, int] | ZfsiloError,
) -> None:
    """Hand the answer to whoever still waits for it."""

    def hand_over() -> None:
        if answer.done():
            return
        if isinstance(found, ZfsiloError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    if not loop.is_closed():
        loop.call_soon_threadsafe(hand_over)

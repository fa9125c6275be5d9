"""Asks peers what they are for a volume, at the same time and with a deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zfsilod.model.errors import ZfsiloError
from zfsilod.requests.peers import PROMOTING, PeerAnswer, answer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.records import Volume
    from zfsilod.requests.context import Servers
    from zfsilod.requests.peers import Outcome

ASK_S = 8.0


async def ask_peers(
    servers: Servers, volume: Volume, peers: Iterable[str]
) -> tuple[PeerAnswer, ...]:
    """Ask all these peers of a volume."""
    return tuple(await asyncio.gather(*(_ask(servers, volume, peer) for peer in peers)))


async def _ask(servers: Servers, volume: Volume, peer: str) -> PeerAnswer:
    try:
        async with asyncio.timeout(ASK_S):
            facts = await servers.replica(peer, volume.id, volume.uid, wait=False)
    except TimeoutError:
        return PeerAnswer(peer=peer, outcome="SILENT", why=f"{peer} did not answer in time")
    except ZfsiloError as error:
        outcome: Outcome = "BUSY" if error.reason == PROMOTING else "SILENT"
        return PeerAnswer(peer=peer, outcome=outcome, why=error.message)
    return answer_of(peer, facts)

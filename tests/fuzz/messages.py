"""Mutated protobuf messages over all methods: no INTERNAL, no growth, no crash."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import create, front_of
from tests.channel import unix_channel_aio
from tests.fuzz.values import Chance
from zfsilod.api.rpc.server import HEALTH
from zfsilod.gateway.limits import Limits
from zfsilod.wire.stub import SERVICES, Api, path_of

if TYPE_CHECKING:
    from tests.api.running import Front

AT_ONCE = 8
DEADLINE_S = 2.0
GROWTH_BYTES = 64 << 20
WARM = 0.2  # of the calls, until memory is first looked at
DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


class Outcome:
    """What came of the calls."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.grown_bytes = 0


async def fuzz(directory: Path, count: int, seed: int) -> Outcome:
    """Send so many messages to a zfsilod of our own."""
    outcome = Outcome()
    async with front_of(directory, limits=Limits(unix=1000, tcp=1000, per_peer=1000)) as front:
        await front.root().volumes.CreateVolume(create())
        queue = iter(range(count))
        before = 0

        async def work() -> None:
            nonlocal before
            for number in queue:
                await call(front, outcome, seed + number)
                if number == int(count * WARM):
                    before = resident()

        front.root()
        front.node()
        await asyncio.gather(*(work() for _each in range(AT_ONCE)))
        outcome.grown_bytes = resident() - before
        if outcome.grown_bytes > GROWTH_BYTES:
            outcome.failures.append(f"memory grew by {outcome.grown_bytes >> 20} MiB")
        await check_alive(front, outcome)
    return outcome


async def call(front: Front, outcome: Outcome, seed: int) -> None:
    """Make one call, of a method, by an identity and with a message that its seed decides."""
    chance = Chance(seed)
    services = (*SERVICES, HEALTH)
    method = chance.draw.choice([each for one in services for each in one.methods])
    raw = chance.mutated(chance.message(method.input_type).SerializeToString())
    channel = chance.draw.choice(front.channels[-2:])
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    made: Any = kind(path_of(method))(raw, timeout=DEADLINE_S)
    try:
        if method.server_streaming:
            await made.read()
            made.cancel()
        else:
            await made
        code = grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        code = error.code()
        if code in DEFECTS:
            outcome.failures.append(
                f"seed {seed}: {method.full_name}: {code.name} {error.details()}"
            )
    outcome.codes[code.name] += 1


async def check_alive(front: Front, outcome: Outcome) -> None:
    """Do something real: through a channel of its own, after all of that."""
    channel = unix_channel_aio(front.path)
    front.channels.append(channel)
    api = Api(channel)
    try:
        await api.volumes.CreateVolume(create("alive-still"), timeout=20)
        await api.volumes.DeleteVolume(
            pb.DeleteVolumeRequest(name="volumes/alive-still"), timeout=20
        )
    except grpc.aio.AioRpcError as error:
        outcome.failures.append(f"afterwards: {error.code().name} {error.details()}")


def resident() -> int:
    """Return how much memory this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

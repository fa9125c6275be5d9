"""The stream that the example of a receive gets: of the snapshot of the example volume."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

from tests.examples import SNAPSHOT_SET, UID
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.replica import SendJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host import HostAdapters


def streams_of(host: HostAdapters, dataset: str) -> Callable[[str], int]:
    """Return a function that opens a new stream at each call."""

    def send(job: SendJob, output: socket.socket) -> None:
        with output, suppress(ZfsiloError, OSError):  # a test ends it early
            host.replicas.send(job, output.fileno())

    def open_stream(_operation: str) -> int:
        ref, uid = SnapshotRef(dataset=dataset, uid=UID), SNAPSHOT_SET.uid
        guid = host.snapshots.find_guids((ref,), uid)[UID]
        job = SendJob(dataset=dataset, volume_uid=UID, uid=uid, guid=guid)
        output, stream = socket.socketpair()
        Thread(target=send, args=(job, output), daemon=True).start()
        return stream.detach()

    return open_stream

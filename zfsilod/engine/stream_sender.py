"""zfsilo-worker send: writes the stream of a snapshot to a descriptor, and reports to its daemon.

It changes nothing, and has a unit of its own because `zfs send` needs capabilities that the daemon
does not have. The descriptor leads to a process that has the connection to the peer, so the bytes
pass neither this process nor the daemon.
"""

from __future__ import annotations

import os

from zfsilod.engine.frames import DONE, send_failure, send_frame
from zfsilod.engine.stream_link import ask, take
from zfsilod.host.replica_protocol import no_stream
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.engine.limits import WorkerLimits
    from zfsilod.host import HostAdapters
    from zfsilod.model.replica import SendJob

SIZE = b"Z"  # of the stream, in bytes, as text


def send_stream(
    host: HostAdapters, limits: WorkerLimits | None, folder: str, ticket: str, job: SendJob
) -> None:
    """Send a snapshot. Raises ZfsiloError for what it has reported as a failure."""
    link = ask(folder, ticket)
    output = take(link)
    try:
        if output < 0:
            no_stream(ticket)
        if limits is not None:
            limits.check_dataset(job.dataset)
        if job.token and not host.replicas.matches(job):
            job = job.but(token="")  # the peer has a part of another snapshot, or says so
        send_frame(link, SIZE, str(host.replicas.find_size(job)).encode())
        host.replicas.send(job, output)
        os.close(output)
        output = -1
        send_frame(link, DONE)
    except ZfsiloError as error:
        send_failure(link, error, "send the snapshot")
        raise
    finally:
        if output >= 0:
            os.close(output)
        link.close()

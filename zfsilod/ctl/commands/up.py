"""`zfsiloctl up` and `down`: the commands of zfsilo-volume@NAME.service.

On a client /etc/zfsilo/volumes.d/NAME.toml names the server and the state: up connects, stages and
mounts. Without that file NAME is a volume that this host serves: up publishes it to its hosts, down
unpublishes it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zfsilod.ctl import messages as pb
from zfsilod.ctl import volume_files
from zfsilod.ctl.change import outcome, send
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.commands.volume import get
from zfsilod.ctl.failures import complain, unit_exit_code
from zfsilod.ctl.features import check_tls
from zfsilod.ctl.output.messages import dumps, plain
from zfsilod.ctl.output.table import say
from zfsilod.ctl.parse import bare, resource, transport
from zfsilod.ctl.require_local import check_local
from zfsilod.host.clock import kernel_is_synchronised
from zfsilod.model.errors import FailedPrecondition, NotFound, ZfsiloError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from zfsilod.ctl.volume_files import VolumeFile

T = TypeVar("T")

MULTI_NODE = "ACCESS_MODE_MULTI_NODE"
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
PAUSES_S = (1, 2, 4, 8, 15)


def up(args: Namespace) -> int:
    """Bring a volume to its configured state on this host."""
    return _as_unit(_up, args)


def down(args: Namespace) -> int:
    """Unmount, unstage and disconnect a volume on this host; unpublish one that it serves."""
    return _as_unit(_down, args)


def _as_unit(command: Callable[[Namespace], None], args: Namespace) -> int:
    """Run a command, and return the exit code for its unit."""
    try:
        command(args)
    except ZfsiloError as error:
        return complain(error, code=unit_exit_code(error, clock_is_right=kernel_is_synchronised()))
    return 0


def _up(args: Namespace) -> None:
    check_local(args, "up")
    name = bare(args.name, "volumes")
    file = volume_files.read(name)
    retry = Retry(args.wait)
    if file is not None:
        operations = retry.run(lambda: _attach(args, file))
    else:
        operations = retry.run(lambda: _publish(args, name))
    _report(args, operations)


def _down(args: Namespace) -> None:
    check_local(args, "down")
    name = bare(args.name, "volumes")
    served = volume_files.read(name) is None
    if served and shutting_down():
        # Unpublishing would delete the publications and their secrets, which the next boot needs.
        say(args, f"{name}: this host is shutting down; publications are kept")
        _report(args, [])
        return
    operations = bring_down(args, name, served=served)
    if not operations:
        say(args, f"{name}: already down")
    _report(args, operations)


def bring_down(args: Namespace, name: str, *, served: bool) -> list[Any]:
    """Detach a volume, and unpublish it if it is served; return the operations.

    Raises the first error: what follows is not tried.
    """
    with dial(args) as server:
        requests = _detach_path(server, name, served=served)
        return [_send(args, server, method, request) for method, request in requests]


def _attach(args: Namespace, file: VolumeFile) -> list[Any]:
    """Bring a volume to its configured state; what is so already stays."""
    request = pb.AttachVolumeRequest(
        server=file.server,
        volume=file.volume,
        local_name=file.name,
        restore=pb.RESTORE_BOOT,
        publish_if_needed=True,
        state=f"STATE_{file.state.upper()}",
        fs_type=file.fs_type,
        mount_options=file.mount_options,
        readonly=file.readonly,
        path=file.mount_path,
        tls=file.tls,
    )
    if file.transport:
        request.transport = transport(file.transport)
    with dial(args) as server:
        check_tls(server, wanted=file.tls)
        return [_send(args, server, "AttachVolume", request)]


def _publish(args: Namespace, name: str) -> list[Any]:
    """Publish a volume to its hosts, or confirm its publications."""
    with dial(args) as server:
        volume = _find(server, name)
        if volume is None or not volume.dataset:
            raise _unknown(name)
        publish = "PublishVolume"
        return [_send(args, server, publish, request) for request in publications_for(volume)]


def publications_for(volume: Any) -> list[Any]:
    """Return the requests that bring a volume to PUBLISHED. Raises FailedPrecondition."""
    allowed = [resource(host, "hosts") for host in volume.hosts if host != "*"]
    existing = {publication.host: publication for publication in volume.publications}
    shared = [mode for mode in volume.access_modes if mode.startswith(MULTI_NODE)]
    hosts = list(dict.fromkeys([*existing, *allowed])) if shared else list(existing) or allowed
    if not hosts:
        raise FailedPrecondition(
            f"{volume.id} has no host to publish it to; add one with zfsiloctl volume update "
            f"{volume.id} --host HOST",
            reason="NO_HOSTS",
            volume=volume.id,
        )
    if len(hosts) > 1 and not shared:
        raise FailedPrecondition(
            f"{volume.id} has {len(hosts)} hosts but its access modes allow one; choose it with "
            f"zfsiloctl volume publish {volume.id} HOST",
            reason="SEVERAL_HOSTS",
            volume=volume.id,
        )
    default = shared[0] if len(hosts) > 1 else pb.ACCESS_MODE_UNSPECIFIED
    return [
        pb.PublishVolumeRequest(
            name=volume.name,
            host=host,
            readonly=host in existing and existing[host].readonly,
            access_mode=existing[host].access_mode if host in existing else default,
            transport=existing[host].transport if host in existing else volume.transport,
            tls=existing[host].tls if host in existing else volume.tls,
        )
        for host in hosts
    ]


def _detach_path(server: Server, name: str, *, served: bool) -> list[tuple[Any, Any]]:
    """Return the requests that detach a volume, and unpublish it if it is served, in order."""
    volume = _find(server, name)
    if volume is None and served:
        raise _unknown(name)
    full = resource(name, "volumes")
    requests: list[tuple[Any, Any]] = []
    if volume is not None and volume.HasField("attachment"):
        requests.append(("DetachVolume", pb.DetachVolumeRequest(name=full)))
    if volume is not None and served and volume.publications:
        unpublish = pb.UnpublishVolumeRequest(name=full, all_hosts=True)
        requests.append(("UnpublishVolume", unpublish))
    return requests


def _find(server: Server, name: str) -> Any:
    """Return a volume, or None when this host has none of this name."""
    try:
        return get(server, name)
    except ZfsiloError as error:
        if error.code != "NOT_FOUND":
            raise
        return None


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"unknown volume {name}: this host does not serve it, and {volume_files.path_of(name)} "
        "does not exist",
        volume=name,
    )


def _send(args: Namespace, server: Server, method: Any, request: Any) -> Any:
    """Submit a change, print its outcome, and return its operation."""
    answer = send(server, method, request, follow=not (args.json or args.quiet))
    say(args, outcome(answer.operation))
    return answer.operation


def _report(args: Namespace, operations: list[Any]) -> None:
    """Print the operations as one JSON object."""
    if args.json:
        print(dumps({"operations": [plain(operation) for operation in operations]}))


class Retry:
    """Retries while a server does not answer; no event tells when it is back."""

    def __init__(
        self,
        wait_s: float,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._until = clock() + wait_s
        self._sleep = sleep
        self._clock = clock

    def run(self, attempt: Callable[[], T]) -> T:
        """Call until it does not raise UNAVAILABLE or the time is up, and return its result."""
        tried = 0
        while True:
            try:
                return attempt()
            except ZfsiloError as error:
                left = self._until - self._clock()
                if error.code != "UNAVAILABLE" or left <= 0:
                    raise
                pause = min(PAUSES_S[min(tried, len(PAUSES_S) - 1)], left)
                if tried == 0:
                    sys.stderr.write(f"{error.message}; retrying for {left:.0f} s\n")
            tried += 1
            self._sleep(pause)


def shutting_down() -> bool:
    """Tell whether systemd is shutting this host down."""
    if not BOOTED.is_dir():
        return False
    from zfsilod.host.run import Runner

    # It exits with a failure in every state but "running"; the state is on standard output.
    state = Runner()(["systemctl", "is-system-running"], timeout_s=10, ok=tuple(range(6)))
    return state.stdout.strip() == "stopping"

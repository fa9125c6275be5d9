"""`zfsiloctl up` and `down`: the whole way, for zfsilo-volume@NAME.service and for people.

A consumer finds what it shall do in /etc/zfsilo/volumes.d/NAME.toml: connect, stage, mount. Without
that file NAME is a volume that this host serves: up publishes it to its hosts, down takes it back.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl import paths, rpc_errors
from zfsilod.ctl.change import outcome, send
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.commands.volume import get
from zfsilod.ctl.output.table import say
from zfsilod.ctl.parse import bare, resource
from zfsilod.ctl.require_local import check_local
from zfsilod.model.errors import FailedPrecondition, InvalidArgument, NotFound, ZfsiloError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

T = TypeVar("T")

WHAT = "volumes go up and down"
MULTI_NODE = "ACCESS_MODE_MULTI_NODE"
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
STATES = ("connected", "staged", "mounted")
# key: (type, default)
KEYS: dict[str, tuple[type, Any]] = {
    "server": (str, ""),
    "volume": (str, ""),
    "state": (str, "mounted"),
    "mount_path": (str, ""),
    "fs_type": (str, ""),
    "mount_options": (list, []),
    "readonly": (bool, False),
}
PAUSES_S = (1, 2, 4, 8, 15)


class Wish:
    """What a file of volumes.d says: where a volume comes from, and how far up it shall be."""

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.name = name
        self.server: str = values["server"]
        self.volume: str = values["volume"] or name
        self.state: str = values["state"].lower()
        self.mount_path: str = values["mount_path"]
        self.fs_type: str = values["fs_type"]
        self.mount_options: list[str] = values["mount_options"]
        self.readonly: bool = values["readonly"]

    @property
    def rungs(self) -> int:
        """How many of connect, stage and mount there are to climb."""
        return STATES.index(self.state) + 1


def up(given: Namespace) -> None:
    """Bring a volume all the way up on this host."""
    check_local(given, WHAT)
    name = bare(given.name, "volumes")
    wish = wish_for(name)
    patience = Patience(given.wait)
    if wish is not None:
        made = patience.run(lambda: _climb(given, wish))
    else:
        made = patience.run(lambda: _publish(given, name))
    _report(given, made)


def down(given: Namespace) -> None:
    """Take a volume all the way down on this host."""
    check_local(given, WHAT)
    name = bare(given.name, "volumes")
    wish = wish_for(name)
    if wish is None and shutting_down():
        # Unpublished, its holders and their secrets would be forgotten by the next boot.
        say(given, f"{name}: this host shuts down, so nothing is changed")
        _report(given, [])
        return
    with dial(given) as server:
        requests = _descent(server, name, served=wish is None)
        made = [_send(given, server, method, request) for method, request in requests]
    if not made:
        say(given, f"{name}: already down")
    _report(given, made)


def _climb(given: Namespace, wish: Wish) -> list[Any]:
    """Connect, stage and mount as far as wished; what is so already is passed."""
    with dial(given) as server:
        volumes, name = server.changes.volumes, resource(wish.name, "volumes")
        climb: list[tuple[Any, Any]] = [
            (
                volumes.ConnectVolume,
                pb.ConnectVolumeRequest(
                    server=wish.server,
                    volume=wish.volume,
                    local_name=wish.name,
                    restore=pb.RESTORE_BOOT,
                    publish_if_needed=True,
                ),
            ),
            (
                volumes.StageVolume,
                pb.StageVolumeRequest(
                    name=name,
                    fs_type=wish.fs_type,
                    mount_options=wish.mount_options,
                    readonly=wish.readonly,
                ),
            ),
            (
                volumes.MountVolume,
                pb.MountVolumeRequest(name=name, path=wish.mount_path, readonly=wish.readonly),
            ),
        ]
        return [_send(given, server, *each) for each in climb[: wish.rungs]]


def _publish(given: Namespace, name: str) -> list[Any]:
    """Publish a volume to the hosts that it names, and make sure of what is published."""
    with dial(given) as server:
        volume = _find(server, name)
        if volume is None or not volume.dataset:
            raise _unknown(name)
        publish = server.changes.volumes.PublishVolume
        return [_send(given, server, publish, request) for request in publications_for(volume)]


def publications_for(volume: Any) -> list[Any]:
    """Return the requests that bring a volume to PUBLISHED. Raises FailedPrecondition."""
    named = [resource(each, "hosts") for each in volume.hosts if each != "*"]
    standing = {each.host: each for each in volume.publications}
    shared = [m for m in volume.access_modes if pb.AccessMode.Name(m).startswith(MULTI_NODE)]
    wanted = list(dict.fromkeys([*standing, *named])) if shared else list(standing) or named
    if not wanted:
        raise FailedPrecondition(
            f"{volume.id} names no host to publish it to: zfsiloctl volume update {volume.id} "
            "--host HOST",
            reason="NO_HOSTS",
            volume=volume.id,
        )
    if len(wanted) > 1 and not shared:
        raise FailedPrecondition(
            f"{volume.id} names {len(wanted)} hosts and admits one at a time: zfsiloctl volume "
            f"publish {volume.id} HOST",
            reason="SEVERAL_HOSTS",
            volume=volume.id,
        )
    default = shared[0] if len(wanted) > 1 else pb.ACCESS_MODE_UNSPECIFIED
    return [
        pb.PublishVolumeRequest(
            name=volume.name,
            host=host,
            readonly=host in standing and standing[host].readonly,
            access_mode=standing[host].access_mode if host in standing else default,
        )
        for host in wanted
    ]


def _descent(server: Server, name: str, *, served: bool) -> list[tuple[Any, Any]]:
    """Return the requests that lead down from where a volume is."""
    volume = _find(server, name)
    if volume is None and served:
        raise _unknown(name)
    volumes, full = server.changes.volumes, resource(name, "volumes")
    way: list[tuple[Any, Any]] = []
    if volume is not None and volume.HasField("attachment"):
        way += [
            (volumes.UnmountVolume, pb.UnmountVolumeRequest(name=full, all_paths=True)),
            (volumes.UnstageVolume, pb.UnstageVolumeRequest(name=full)),
            (volumes.DisconnectVolume, pb.DisconnectVolumeRequest(name=full)),
        ]
    if volume is not None and served and volume.publications:
        way.append((volumes.UnpublishVolume, pb.UnpublishVolumeRequest(name=full, all_hosts=True)))
    return way


def _find(server: Server, name: str) -> Any:
    """Return a volume as this host knows it, or None."""
    try:
        return get(server, name)
    except ZfsiloError as error:
        if error.code != "NOT_FOUND":
            raise
        return None


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"this host serves no volume {name}, and there is no {wish_path(name)} that would say "
        "where it comes from",
        volume=name,
    )


def _send(given: Namespace, server: Server, method: Any, request: Any) -> Any:
    """Ask for a change, tell people what came of it, and return its operation."""
    answer = send(server, method, request, follow=not (given.json or given.quiet))
    say(given, outcome(answer.operation))
    return answer.operation


def _report(given: Namespace, operations: list[Any]) -> None:
    """Print what was done as the one object that programs want."""
    if given.json:
        print(rpc_errors.dumps({"operations": [rpc_errors.plain(each) for each in operations]}))


class Patience:
    """Tries again while somebody does not answer: a server sends no event when it is back."""

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
        """Call until it does not raise UNAVAILABLE, or the time is up; return what it returns."""
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
                    sys.stderr.write(f"{error.message}; trying again for {left:.0f} s\n")
            tried += 1
            self._sleep(pause)


def wish_path(name: str) -> Path:
    """Return where the file of a volume lies."""
    return paths.etc() / "volumes.d" / f"{name}.toml"


def wish_for(name: str) -> Wish | None:
    """Read the file of a volume; None when there is none. Raises InvalidArgument."""
    path = wish_path(name)
    if "/" in name:
        raise InvalidArgument(f"{name[:140]!r} is no name of a volume", reason="BAD_ID")
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from error
    return Wish(name, _checked(text, path))


def _checked(text: str, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _bad(path, str(error)) from error
    unknown = sorted(set(found) - set(KEYS))
    if unknown:
        raise _bad(path, f"there is no key {unknown[0]}: the keys are {', '.join(KEYS)}")
    for key, (kind, _default) in KEYS.items():
        if not isinstance(found.get(key, kind()), kind):
            raise _bad(path, f"{key} must be {KINDS[kind]}")
    values = {key: default for key, (_kind, default) in KEYS.items()} | found
    if not all(isinstance(each, str) for each in values["mount_options"]):
        raise _bad(path, "mount_options must be a list of texts")
    if not values["server"]:
        raise _bad(path, "server is missing: the name of a server (zfsiloctl server list)")
    if values["state"].lower() not in STATES:
        raise _bad(path, f"state must be one of {', '.join(STATES)}")
    if values["state"].lower() == "mounted" and not values["mount_path"]:
        raise _bad(path, 'mount_path is missing: where to mount it, or state = "staged"')
    return values


KINDS = {str: "a text", list: "a list of texts", bool: "true or false"}


def _bad(path: Path, complaint: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {complaint}", reason="BAD_CONFIG")


def shutting_down() -> bool:
    """Tell whether systemd takes this host down now."""
    if not BOOTED.is_dir():
        return False
    from zfsilod.host.run import Runner

    # Its exit code says less than its word: every state but "running" is a failure.
    told = Runner()(["systemctl", "is-system-running"], timeout_s=10, ok=tuple(range(6)))
    return told.stdout.strip() == "stopping"

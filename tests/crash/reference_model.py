"""Reference model of a volume: its state, size and mounts before and after each request.

The model has no steps, statuses or claims.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tests.crash import cases
from zfsilod.requests.attach import Grow, MountAt, Stage
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Unpublish
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import UpdateVolume

if TYPE_CHECKING:
    from zfsilod.requests.request import Request

GIB = cases.GIB
PATHS = ("/srv/one", "/srv/two")
REQUESTS = (
    *("create", "publish", "attach", "connect", "stage", "mount", "grow", "update", "sync"),
    *("detach", "unmount", "unstage", "disconnect", "unpublish", "delete"),
)


class ModelVolume(NamedTuple):
    """The state of a volume in the model, on the server and on the client."""

    server: int = 0  # 0 absent, 1 created, 2 published
    size: int = 0
    client: int = 0  # 0 absent, 1 connected, 2 staged
    client_size: int = 0
    mounts: frozenset[str] = frozenset()


class DrawnRequest(NamedTuple):
    """A request that hypothesis draws, without the name of its volume."""

    request: str
    path: str = ""

    def of(self, name: str, size: int) -> Request[Any]:
        """Return the request for a volume; `size`: that of an update."""
        path = f"{self.path}-{name}"
        match self.request:
            case "create":
                return cases.CREATE.but(id=name)
            case "update":
                return UpdateVolume(id=name, mask=("capacity_bytes",), capacity_bytes=size)
            case "publish":
                return cases.PUBLISH.but(volume=name)
            case "attach":
                return cases.ATTACH.but(id=name, volume=name, path=path)
            case "detach":
                return cases.DETACH.but(id=name)
            case "connect":
                return cases.CONNECT.but(id=name, volume=name)
            case "stage":
                return Stage(id=name)
            case "mount":
                return MountAt(id=name, path=path)
            case "grow":
                return Grow(id=name)
            case "unmount":
                return UnmountFrom(id=name, path=path)
            case "unstage":
                return Unstage(id=name)
            case "disconnect":
                return Disconnect(id=name)
            case "unpublish":
                return Unpublish(volume=name)
            case "delete":
                return DeleteVolume(id=name)
        return SyncVolume(id=name)

    def after(self, name: str, now: ModelVolume, size: int) -> ModelVolume | None:
        """Return the state after the request, or None if it must be refused."""
        path = f"{self.path}-{name}"
        match self.request:
            case "create" if now.server == 0:
                return now._replace(server=1, size=GIB)
            case "create" if now.size == GIB:
                return now
            case "update" if now.server and size >= now.size:
                return now._replace(size=size)
            case "publish" if now.server:
                return now._replace(server=2)
            case "attach" if now.server == 2:
                size = now.client_size if now.client == 2 else now.size
                return now._replace(client=2, client_size=size, mounts=now.mounts | {path})
            case "detach":
                return now._replace(client=0, client_size=0, mounts=frozenset())
            case "connect" if now.server == 2:
                return now if now.client else now._replace(client=1, client_size=now.size)
            case "stage" if now.client == 1:
                return now._replace(client=2, client_size=now.size)
            case "stage" if now.client == 2:
                return now
            case "mount" if now.client == 2:
                return now._replace(mounts=now.mounts | {path})
            case "grow" if now.client:
                return now._replace(client_size=now.size)
            case "unmount":
                return now._replace(mounts=now.mounts - {path})
            case "unstage" if now.client < 2:
                return now
            case "unstage" if not now.mounts:
                return now._replace(client=1)
            case "disconnect" if now.client < 2:
                return now._replace(client=0, client_size=0)
            case "unpublish" if now.server and not now.client:
                return now._replace(server=1)
            case "delete" if now.server == 1:
                return ModelVolume()
            case "sync" if now.server:
                return now
        return None

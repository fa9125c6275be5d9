"""A connection as a server describes it: the target, its portals, its secrets, and the epoch."""

from __future__ import annotations

from zfsilod.model.host_facts import Disk, Filesystem
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import transport_of
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.words import Mode


class Connection(Record):
    """The answer to FetchConnection, without its secrets."""

    volume: str
    target: str
    portals: tuple[str, ...]
    serial: str
    size_bytes: int
    mode: Mode
    epoch: int
    rotation: int
    readonly: bool
    filesystem: Filesystem
    tls: bool = False  # the portals require TLS, and the secrets have its PSK
    by_controller: bool = False  # a controller published it: the CSI node may connect it

    @property
    def disk(self) -> Disk:
        """The block device that a session with the target has."""
        return Disk(target=self.target, serial=self.serial, size_bytes=self.size_bytes)


class FetchedConnection:
    """A connection with its secrets.

    `published`: the operation of this client that published the volume; "": it was published
    before.
    """

    def __init__(self, connection: Connection, chap: Chap, *, published: str = "") -> None:
        self.connection = connection
        self.chap = chap
        self.published = published


def foreign_target(target: str, owner: str) -> str:
    """Return the message about a target whose node record or session is another's."""
    whose = f"belongs to server {owner}" if owner else "was not made by zfsilo"
    what, tool = "session or node record", "iscsiadm"
    if transport_of(target) == "NVME":
        what, tool = "controller", f"`nvme disconnect --nqn {target}`"
    return (
        f"the {what} of {target} on this host {whose}; end it with {tool} if it is not needed, "
        "then connect again"
    )

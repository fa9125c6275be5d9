"""Steps on the users of a disk or a zvol: asked for before anything of it is removed."""

from __future__ import annotations

from zfsilod.engine.step import CUT, Guard, OneWay
from zfsilod.host.transports import session_adapter
from zfsilod.model.errors import Busy, Unavailable, show
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import Disk

ENDED = "a process that has ended since"
MAX_PATHS = 4  # whose processes are named; the search takes up to 2 s for each


class DiskUnused(Guard, tag="DiskUnused", part="INITIATOR"):
    """Nothing uses the disk, except mounts at these paths: those of the attachment."""

    volatile = True
    disk: Disk
    paths: tuple[str, ...] = ()

    def probe(self, host: HostAdapters) -> bool:
        return not session_adapter(host, self.disk.target).users_beside(self.disk, self.paths)

    def refusal(self, host: HostAdapters) -> Busy:
        names = session_adapter(host, self.disk.target).users_beside(self.disk, self.paths)
        by = ", ".join(map(show, names)) or ENDED
        return Busy(
            f"the disk of {self.disk.target} is in use by {by}: end that first, or use --force",
            reason="IN_USE",
            target=self.disk.target,
            users=" ".join(map(show, names)),
        )

    def fact(self) -> str:
        return "nothing else uses the disk"

    def describe_do(self) -> str:
        return f"check that nothing else uses the disk of {self.disk.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


class UsersNamed(OneWay, tag="UsersNamed", part="MOUNTS"):
    """The operation names the users of a disk, which it cuts off. One-way: nothing is changed."""

    volatile = True
    disk: Disk
    paths: tuple[str, ...] = ()  # of the attachment

    def probe(self, _host: HostAdapters) -> bool:
        return True

    def do(self, _host: HostAdapters) -> None:
        """Change nothing: the names are observed."""

    def observed(self, host: HostAdapters, *, made: bool) -> dict[str, str]:
        paths = self.paths[:MAX_PATHS]
        processes = [name for path in paths for name in host.mounts.processes(path)]
        try:
            names = session_adapter(host, self.disk.target).users_beside(
                self.disk, self.paths, settle=False
            )
        except Unavailable as error:
            names = [error.message]
        cut = ", ".join(map(show, dict.fromkeys((*names, *processes))))
        return {CUT: cut} if cut else {}

    def fact(self) -> str:
        return "the users of the disk are named"

    def describe_do(self) -> str:
        return f"name the users of the disk of {self.disk.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


class ZvolUnused(Guard, tag="ZvolUnused", part="POOL"):
    """Nothing on this host uses the zvol, which can be renamed even while something does."""

    volatile = True
    dataset: str

    def probe(self, host: HostAdapters) -> bool:
        return not host.zfs.users(self.dataset)

    def refusal(self, host: HostAdapters) -> Busy:
        names = host.zfs.users(self.dataset)
        return Busy(
            f"the zvol {self.dataset} is in use by {', '.join(map(show, names)) or ENDED}",
            reason="DATASET_BUSY",
            dataset=self.dataset,
            users=" ".join(map(show, names)),
        )

    def fact(self) -> str:
        return "nothing on this host uses the zvol"

    def describe_do(self) -> str:
        return f"check that nothing uses zvol {self.dataset}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,))

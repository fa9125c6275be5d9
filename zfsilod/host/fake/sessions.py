"""The sessions of the simulated host, as far as all transports have the same facts."""

from __future__ import annotations

from zfsilod.model.errors import Busy, FailedPrecondition, Unavailable
from zfsilod.model.host_facts import SessionProblem
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.host_facts import Disk


class FakeSessions:
    """The sessions of one transport as facts."""

    prefix: str  # of the names of its targets

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_loss_wait(self, disk: Disk, seconds: int) -> bool:
        session = self.facts.get(f"session:{disk.target}")
        return session is not None and session.get("wait", 0) == seconds

    def set_loss_wait(self, disk: Disk, seconds: int) -> None:
        session = dict(self.facts.get(f"session:{disk.target}") or {})
        if session and "lost" not in session:
            session.pop("wait", None)
            self.facts.effect(f"session:{disk.target}", session | wait_of(seconds))

    def logout(self, disk: Disk) -> None:
        if hangs(self.facts, disk):
            raise Unavailable(f"the session with {disk.target} did not end")
        for path, mount in self.facts.of_kind("mount").items():
            if mount["serial"] == disk.serial:
                raise Busy(f"the disk of {disk.target} is mounted at {path}", path=path)
        if names := self.users_beside(disk, ()):
            raise Busy(f"the disk of {disk.target} is in use by {', '.join(names)}")
        self.drop(disk)

    def has_any_session(self, disk: Disk) -> bool:
        return self.facts.get(f"session:{disk.target}") is not None

    def is_lost(self, disk: Disk) -> bool:
        session = self.facts.get(f"session:{disk.target}")
        return session is None or "lost" in session

    def is_responsive(self, disk: Disk) -> bool:
        return not hangs(self.facts, disk)

    def portal(self, disk: Disk) -> str:
        session = self.facts.get(f"session:{disk.target}") or {}
        return str(session.get("portal", ""))

    def users(self, disk: Disk) -> list[str]:
        mounts = sorted(self.facts.of_kind("mount").items())
        paths = [path for path, mount in mounts if mount["serial"] == disk.serial]
        return [*self.facts.users(disk.serial, "kernel"), *paths]

    def users_beside(self, disk: Disk, paths: tuple[str, ...], *, settle: bool = True) -> list[str]:
        if not self.has_any_session(disk):
            return []
        known = [user for user in self.users(disk) if user not in paths]
        if self.facts.users(disk.serial, "hidden"):
            raise Unavailable("it is not known whether the disk is in use", reason="UNKNOWN")
        return [*known, *self.facts.users(disk.serial, "process")]

    def sessions(self, prefix: str = "") -> list[str]:
        names = [name for name in self.facts.names("session") if name.startswith(prefix)]
        return sorted(name for name in names if name.startswith(self.prefix))

    def drop(self, disk: Disk) -> None:
        if self.has_any_session(disk):
            self.facts.effect(f"session:{disk.target}", None)

    def has_size(self, disk: Disk) -> bool:
        session = self.facts.get(f"session:{disk.target}")
        return bool(session and session["size"] == disk.size_bytes)

    def problems(self, disks: list[Disk]) -> dict[str, SessionProblem]:
        problems: dict[str, SessionProblem] = {}
        for target in (disk.target for disk in disks):
            session = self.facts.get(f"session:{target}")
            if session is None:
                problems[target] = SessionProblem(fault="NO_SESSION")
            elif "lost" in session:
                problems[target] = SessionProblem(fault="LOST")
            elif session.get("lost_paths"):
                lost = tuple(session["lost_paths"])
                problems[target] = SessionProblem(fault="PATH_LOST", portals=lost)
        return problems

    def rescan(self, disk: Disk) -> None:
        need_session(self.facts, disk)
        session = self.facts.get(f"session:{disk.target}")
        self.facts.effect(f"session:{disk.target}", session | {"size": disk.size_bytes})


def wait_of(seconds: int) -> dict[str, int]:
    return {"wait": seconds} if seconds else {}


def hangs(facts: Facts, disk: Disk) -> bool:
    """Tell whether the session of a disk is live but does not answer I/O."""
    session = facts.get(f"session:{disk.target}")
    return bool(session and "hangs" in session)


def need_session(facts: Facts, disk: Disk) -> None:
    """Raise FailedPrecondition without a session for a disk, Unavailable when it is lost."""
    session = facts.get(f"session:{disk.target}")
    if session is None:
        raise FailedPrecondition(f"there is no session with {disk.target}", target=disk.target)
    if "lost" in session:
        raise Unavailable(f"the session with {disk.target} was lost and is being recovered")

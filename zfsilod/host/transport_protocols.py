"""What the adapters of all transports have: of a target on a server, of a session on a client."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk, ExportPath, SessionProblem


class TargetAdapter(Protocol):
    """A target of the kernel, in configfs, as far as all transports have the same words for it.

    A target leads to one zvol. An ACL admits one initiator with its secrets.
    """

    def has_target(self, target: str) -> bool:
        """Tell whether a target exists, with authentication and without access for others."""

    def add_target(self, target: str) -> None: ...
    def remove_target(self, target: str) -> None: ...
    def has_portals(self, target: str, portals: tuple[str, ...]) -> bool:
        """Tell whether a target has exactly these portals."""

    def add_portals(self, target: str, portals: tuple[str, ...]) -> None:
        """Make the portals of a target, and remove all others."""

    def remove_portals(self, target: str) -> None: ...
    def has_acl(self, target: str, initiator: str, *, chap: Chap, allowed: tuple[str, ...]) -> bool:
        """Tell whether a target has an ACL for an initiator, with these secrets.

        Raises Conflict when it has an ACL for an initiator that is not in `allowed` either.
        """

    def add_acl(self, target: str, initiator: str, *, chap: Chap) -> None:
        """Make an ACL and set its secrets. No LUN is mapped yet."""

    def has_secrets(self, target: str, initiator: str, *, chap: Chap) -> bool:
        """Tell whether an ACL exists and has these secrets.

        Without CAP_SYS_ADMIN secrets of iSCSI cannot be read, and are assumed to be right.
        """

    def set_secrets(self, target: str, initiator: str, *, chap: Chap) -> None:
        """Change the secrets of an ACL if it exists; its session continues."""

    def remove_acl(self, target: str, initiator: str) -> None:
        """Remove an ACL with its mapped LUNs; a session of the initiator ends.

        Sessions of others may end for a moment, and come back when it has returned.
        """

    def exists(self, target: str, initiator: str = "") -> bool:
        """Tell whether there is anything of a target, or of its ACL for an initiator.

        Of an ACL also while its removal has begun and not ended.
        """

    def list_targets(self) -> list[str]:
        """Return the names of all targets, including those of other programs."""

    def list_acls(self, target: str) -> list[str]:
        """Return the initiators that a target has ACLs for."""

    def export_paths(self) -> list[ExportPath]:
        """Return every path from a target to a zvol, including those of other programs."""

    def remove_export(self, target: str, backstore: str | None) -> None:
        """Remove a target with everything in it, and a backstore, if they exist."""

    def has_session(self, target: str, initiator: str) -> bool:
        """Tell whether an initiator is logged in to a target, or may be."""

    def end_session(self, target: str, initiator: str, *, grace_s: int) -> None:
        """Wait `grace_s` for a logout, then remove the ACL of the initiator with its session.

        Raises Unavailable (SESSION_LIVE) when the session does not end.
        """


class SessionAdapter(Protocol):
    """A client of the kernel, as far as all transports have the same words for it.

    A method that needs a live session raises FailedPrecondition (NOT_CONNECTED) without a session,
    and Unavailable (SESSION_RECOVERY) while a lost session is being recovered.
    """

    def owner(self, target: str) -> str | None:
        """Return the server for which zfsilo made the node record or the session of a target.

        "": they were not made by zfsilo, or by version 0.1.0; None: there are none.
        """

    def has_loss_wait(self, disk: Disk, seconds: int) -> bool:
        """Tell whether I/O waits this long for the session of the disk when it is lost.

        0: without limit. False without a session.
        """

    def set_loss_wait(self, disk: Disk, seconds: int) -> None:
        """Set it for every live session; a lost one of iSCSI keeps its value."""

    def logout(self, disk: Disk) -> None:
        """Log out. Raises Busy (IN_USE) while the disk of a live session is in use."""

    def has_any_session(self, disk: Disk) -> bool:
        """Tell whether a session with the target of the disk exists, live or lost."""

    def is_lost(self, disk: Disk) -> bool:
        """Tell whether no session with the target of the disk is logged in."""

    def is_responsive(self, disk: Disk) -> bool:
        """Tell whether a read of the disk ends within 5 s, with data or an error.

        A map of several paths has the time to take another one. True without a disk.
        """

    def users(self, disk: Disk) -> list[str]:
        """Return the holders of the disk and its mount points; none when there is no disk.

        Also swap, loop devices and bind mounts of its node, and processes as far as they are seen.
        """

    def users_beside(self, disk: Disk, paths: tuple[str, ...], *, settle: bool = True) -> list[str]:
        """Return all users of the disk except mounts at these paths; none when there is no disk.

        Raises Unavailable (UNKNOWN) when the descriptors of other processes cannot be seen.
        `settle`: wait for processes that use it for a moment.
        """

    def has_paths(self, disk: Disk) -> bool:
        """Tell whether the disk may have several paths: sessions at several portals."""

    def follows(self, disk: Disk, portals: tuple[str, ...]) -> bool:
        """Tell whether each of these portals that answers has a path, live or lost there.

        Also true without any session. False when a path is at another portal and the disk does not
        need it. Without has_paths(): whether the session is live, or tries one of these portals.
        """

    def sessions(self, prefix: str = "") -> list[str]:
        """Return the targets with a session whose names start with a prefix."""

    def portal(self, disk: Disk) -> str:
        """Return the portal at which the session is, or tries to be; "" without a session."""

    def drop(self, disk: Disk) -> None:
        """End every session with the target of the disk, even while the disk is in use."""

    def has_session_secrets(self, chaps: dict[str, Chap]) -> bool:
        """Tell whether sessions would log in again with these secrets, by target.

        Only sessions count; a target without one needs no secrets.
        """

    def set_session_secrets(self, chaps: dict[str, Chap]) -> None:
        """Change the secrets of sessions, by target."""

    def has_size(self, disk: Disk) -> bool:
        """Tell whether the kernel sees the disk with its size or a larger one."""

    def rescan(self, disk: Disk) -> None:
        """Read the size of the disk again. Raises Unavailable (NOT_GROWN) when it is smaller."""

    def problems(self, disks: list[Disk]) -> dict[str, SessionProblem]:
        """Return the problems of the sessions of disks, by target, from one reading of sysfs."""

"""The NVMe controllers of the simulated host, which connect to the subsystems in the same facts."""

from __future__ import annotations

from zfsilod.host.fake.nvmet import TLS
from zfsilod.host.fake.psk import forget_psk, has_psk, put_psk
from zfsilod.host.fake.secrets import digest
from zfsilod.host.fake.sessions import FakeSessions, need_session, wait_of
from zfsilod.model.errors import Conflict, PermissionDenied, Unavailable
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk


class FakeNvme(FakeSessions):
    """Controllers; one of a subsystem of this host needs its right, its keys and a port."""

    prefix = "nqn."

    def is_available(self) -> bool:
        return True

    def owner(self, target: str) -> str | None:
        session = self.facts.get(f"session:{target}")
        return None if session is None else str(session.get("server", ""))

    def _check_owner(self, target: str, server: str) -> None:
        if self.owner(target) not in (None, server):
            raise Conflict(f"the controller of {target} is foreign", target=target)

    def has_controller(
        self, disk: Disk, portals: tuple[str, ...], *, server: str, tls: Chap | None = None
    ) -> bool:
        self._check_owner(disk.target, server)
        session = self.facts.get(f"session:{disk.target}")
        if session and "lost" in session and session.get("portal", "") not in portals:
            return False
        if session and session["serial"] != disk.serial:
            raise Conflict(f"the disk of {disk.target} has another identity", target=disk.target)
        if session:
            need_session(self.facts, disk)
        return bool(session) and (tls is None or has_psk(self.facts, disk.target, tls, client=True))

    def has_paths(self, disk: Disk) -> bool:
        return self.has_any_session(disk)

    def follows(self, disk: Disk, portals: tuple[str, ...]) -> bool:
        session = self.facts.get(f"session:{disk.target}") or {}
        if "lost" in session:
            return session.get("portal", "") in portals
        return not self.missing(session, portals)

    def connect(
        self,
        disk: Disk,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str,
        lost_session_s: int,
    ) -> None:
        self._check_owner(disk.target, server)
        put_psk(self.facts, disk.target, chap, client=True)
        present = self.facts.get(f"session:{disk.target}")
        if present and "lost" not in present:
            self._add_paths(disk.target, portals)
            return
        local = self.facts.get(f"target:{disk.target}") is not None
        acl = self.facts.get(f"acl:{disk.target}/{chap.username}")
        if local and acl != digest(chap):
            raise PermissionDenied(f"the subsystem {disk.target} refused this host")
        ports = self.facts.get(f"portals:{disk.target}") or []
        if local and not any(port.startswith(TLS) == chap.has_tls for port in ports):
            raise Unavailable(f"no port of {disk.target} answers")
        session = {
            "serial": disk.serial,
            "size": disk.size_bytes,
            "server": server,
            "initiator": chap.username,
            "chap": digest(chap),
            "portal": next((one for one in portals if one not in self.closed), portals[0]),
            "limited": True,
        }
        self.facts.effect(f"session:{disk.target}", session | wait_of(lost_session_s))
        self._add_paths(disk.target, portals)

    def _add_paths(self, target: str, portals: tuple[str, ...]) -> None:
        """Join a controller at each portal that answers; those at other portals are removed."""
        session = self.facts.get(f"session:{target}")
        kept = [one for one in session.get("beside", ()) if one in portals]
        for portal in self.missing(session, portals):
            kept.append(portal)
            self.facts.effect(f"session:{target}", session | {"beside": list(kept)})

    def drop(self, disk: Disk) -> None:
        forget_psk(self.facts, disk.target)
        super().drop(disk)

    def has_queue_limit(self, disk: Disk) -> bool:
        return "limited" in (self.facts.get(f"session:{disk.target}") or {})

    def set_queue_limit(self, disk: Disk) -> None:
        need_session(self.facts, disk)
        session = self.facts.get(f"session:{disk.target}")
        self.facts.effect(f"session:{disk.target}", session | {"limited": True})

    def has_session_secrets(self, chaps: dict[str, Chap]) -> bool:
        sessions = {target: self.facts.get(f"session:{target}") for target in chaps}
        return all(
            session is None
            or (
                session["chap"] == digest(chaps[target])
                and has_psk(self.facts, target, chaps[target], client=True)
            )
            for target, session in sessions.items()
        )

    def set_session_secrets(self, chaps: dict[str, Chap]) -> None:
        for target, chap in chaps.items():
            session = self.facts.get(f"session:{target}")
            if session is not None:
                put_psk(self.facts, target, chap, client=True)
                self.facts.effect(f"session:{target}", session | {"chap": "half"})
                self.facts.effect(f"session:{target}", session | {"chap": digest(chap)})

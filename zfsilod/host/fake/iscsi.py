"""The iSCSI initiator of the simulated host, which logs in to the targets in the same facts."""

from __future__ import annotations

from zfsilod.host.fake.secrets import digest
from zfsilod.host.fake.sessions import FakeSessions, need_session, wait_of
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, PermissionDenied, Unavailable
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk
    from zfsilod.storage.paths import AnyPath


def simulated_initiator(facts: AnyPath | None) -> str:
    """Return a name that depends on the path of the facts: each simulation is a machine."""
    import hashlib  # a worker does not need it

    path_hash = hashlib.sha256(str(facts).encode()).hexdigest()[:12]
    return f"iqn.2026-01.org.zfsilo:simulated.{path_hash}"


class FakeIscsi(FakeSessions):
    """Node records and sessions; a login to a target of this host needs its ACL and secrets."""

    prefix = "iqn."

    def owner(self, target: str) -> str | None:
        node = self.facts.get(f"node:{target}")
        if node is not None:
            return str(node.get("server", ""))
        return "" if self.facts.get(f"session:{target}") is not None else None

    def has_node(
        self,
        target: str,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str = "",
        lost_session_s: int = 0,
    ) -> bool:
        present = dict(self.facts.get(f"node:{target}") or {})
        mark = present.pop("server", "")
        unmarked = not present or "chap" in present  # made by version 0.1.0
        if server and mark != server and (mark or not unmarked):
            raise Conflict(f"the node record of {target} is foreign", target=target)
        node = {"portals": list(portals), "initiator": chap.username, "chap": digest(chap)}
        return present == node | wait_of(lost_session_s)

    def add_node(
        self,
        target: str,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str = "",
        lost_session_s: int = 0,
    ) -> None:
        node = {"portals": list(portals), "initiator": chap.username} | wait_of(lost_session_s)
        node |= {"server": server} if server else {}
        self.facts.effect(f"node:{target}", node | {"chap": "no secrets"})
        self.facts.effect(f"node:{target}", node | {"chap": digest(chap)})

    def remove_node(self, target: str) -> None:
        if self.facts.get(f"node:{target}") is None:
            return
        if self.facts.get(f"session:{target}") is not None:
            raise Busy(f"this host is logged in to {target}", reason="LOGGED_IN", target=target)
        self.facts.effect(f"node:{target}", None)

    def has_session(self, disk: Disk) -> bool:
        session = self.facts.get(f"session:{disk.target}")
        if session and session["serial"] != disk.serial:
            raise Conflict(f"the disk of {disk.target} has another serial", target=disk.target)
        if session:
            need_session(self.facts, disk)
        return bool(session)

    def login(self, disk: Disk) -> None:
        node = self.facts.get(f"node:{disk.target}")
        if node is None:
            raise FailedPrecondition(f"there is no node record of {disk.target}")
        local = self.facts.get(f"target:{disk.target}") is not None
        acl = f"{disk.target}/{node['initiator']}"
        if local and self.facts.get(f"acl:{acl}") != node["chap"]:
            raise PermissionDenied(f"the target {disk.target} refused the CHAP secrets")
        session = {"serial": disk.serial, "size": disk.size_bytes}
        session |= {"initiator": node["initiator"], "chap": node["chap"]}
        session |= wait_of(node.get("wait", 0)) | {"portal": node["portals"][0]}
        self.facts.effect(f"session:{disk.target}", session)
        if local and self.facts.get(f"mapped:{acl}") in (None, "unlinked"):
            raise Unavailable(f"logged in to {disk.target}, but its disk did not appear")

    def follows(self, disk: Disk, portals: tuple[str, ...]) -> bool:
        session = self.facts.get(f"session:{disk.target}") or {}
        return "lost" not in session or session.get("portal", "") in ("", *portals)

    def follow(self, disk: Disk, portals: tuple[str, ...]) -> None:
        if self.follows(disk, portals):
            return
        session = dict(self.facts.get(f"session:{disk.target}"))
        session.pop("lost")
        self.facts.effect(f"session:{disk.target}", session | {"portal": portals[0]})

    def nodes(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.facts.names("node") if name.startswith(prefix))

    def initiator(self) -> str:
        return simulated_initiator(self.facts.path)

    def host_nqn(self) -> str:
        return ""

    def has_session_secrets(self, chaps: dict[str, Chap]) -> bool:
        live = self._live(chaps)
        outdated = self.facts.get("outdated:iscsid") is not None
        return not live or (not outdated and all(live[t]["chap"] == digest(chaps[t]) for t in live))

    def set_session_secrets(self, chaps: dict[str, Chap]) -> None:
        live = self._live(chaps)
        if not live:
            return
        self.facts.effect("outdated:iscsid", "yes")
        for target, session in live.items():
            self.facts.effect(f"session:{target}", session | {"chap": digest(chaps[target])})
        self.facts.effect("outdated:iscsid", None)

    def _live(self, chaps: dict[str, Chap]) -> dict[str, dict[str, str]]:
        sessions = {target: self.facts.get(f"session:{target}") for target in chaps}
        return {
            target: session
            for target, session in sessions.items()
            if session is not None and "lost" not in session
        }

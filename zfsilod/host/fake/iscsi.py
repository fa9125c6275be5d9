"""The iSCSI initiator of the simulated host, which logs in to the targets in the same facts."""

from __future__ import annotations

from zfsilod.host.fake.secrets import digest
from zfsilod.host.fake.sessions import FakeSessions, need_session, wait_of
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, PermissionDenied, Unavailable
from zfsilod.model.host_facts import SessionProblem
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk
    from zfsilod.storage.paths import AnyPath

MULTIPATHD = "multipathd:"
"""The fact that multipathd runs on the simulated host."""


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
        return bool(session) and not self._is_half_joined(disk)

    def _is_half_joined(self, disk: Disk) -> bool:
        """Tell whether a worker was stopped between a session and its map."""
        session = self.facts.get(f"session:{disk.target}") or {}
        return session.get("map") is False

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
        present = self.facts.get(f"session:{disk.target}")
        opened = [one for one in node["portals"] if one not in self.closed] or node["portals"]
        session |= wait_of(node.get("wait", 0)) | {"portal": opened[0]}
        session |= {key: present[key] for key in ("map", "beside") if present and key in present}
        if present is None and self.facts.get(MULTIPATHD) and len(node["portals"]) > 1:
            session |= {"map": False}
        self.facts.effect(f"session:{disk.target}", session)
        if local and self.facts.get(f"mapped:{acl}") in (None, "unlinked"):
            raise Unavailable(f"logged in to {disk.target}, but its disk did not appear")
        if "map" in session:
            self.facts.effect(f"session:{disk.target}", session | {"map": True})
            self._use(disk, tuple(node["portals"]))

    def _use(self, disk: Disk, portals: tuple[str, ...]) -> None:
        """Log in at each of these portals that answers, then out of those at others."""
        session = dict(self.facts.get(f"session:{disk.target}"))
        paths = [session["portal"], *session.get("beside", ())]
        for portal in self.missing(session, portals):
            paths.append(portal)
            self.facts.effect(f"session:{disk.target}", session | {"beside": paths[1:]})
        kept = [path for path in paths if path in portals]
        if "lost" in session and kept != paths[:1]:
            session.pop("lost")
        if kept and kept != paths:
            session |= {"portal": kept[0], "beside": kept[1:]}
            self.facts.effect(f"session:{disk.target}", session)

    def has_paths(self, disk: Disk) -> bool:
        return bool((self.facts.get(f"session:{disk.target}") or {}).get("map"))

    def follows(self, disk: Disk, portals: tuple[str, ...]) -> bool:
        session = self.facts.get(f"session:{disk.target}") or {}
        if session.get("map"):
            paths = {session["portal"], *session.get("beside", ())}
            return not self.missing(session, portals) and paths <= {*portals}
        return "lost" not in session or session.get("portal", "") in ("", *portals)

    def follow(self, disk: Disk, portals: tuple[str, ...]) -> None:
        if self.follows(disk, portals):
            return
        if self.has_paths(disk):
            self._use(disk, portals)
            return
        session = dict(self.facts.get(f"session:{disk.target}"))
        session.pop("lost")
        self.facts.effect(f"session:{disk.target}", session | {"portal": portals[0]})

    def problems(self, disks: list[Disk]) -> dict[str, SessionProblem]:
        problems = super().problems(disks)
        for disk in disks:
            node = self.facts.get(f"node:{disk.target}") or {}
            portals = tuple(node.get("portals", ()))
            if self.has_paths(disk):
                if not self.facts.get(MULTIPATHD):
                    problems.setdefault(disk.target, SessionProblem(fault="NO_MULTIPATHD"))
            elif len(portals) > 1:
                problems.setdefault(disk.target, SessionProblem(fault="ONE_PATH", portals=portals))
        return problems

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

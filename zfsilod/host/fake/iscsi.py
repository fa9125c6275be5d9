"""The initiator of the simulated consumer, which logs in to the targets of the same facts."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from zfsilod.host.fake.secrets import digest
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, PermissionDenied, Unavailable

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk


class FakeIscsi:
    """Node records and sessions as facts; a login to a target of this very host is checked."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_node(self, target: str, portals: tuple[str, ...], *, chap: Chap) -> bool:
        found = self.facts.get(f"node:{target}")
        made = {"portals": list(portals), "initiator": chap.username}
        return bool(found == made | {"chap": digest(chap)})

    def add_node(self, target: str, portals: tuple[str, ...], *, chap: Chap) -> None:
        made = {"portals": list(portals), "initiator": chap.username}
        self.facts.effect(f"node:{target}", made | {"chap": "no secrets"})
        self.facts.effect(f"node:{target}", made | {"chap": digest(chap)})

    def remove_node(self, target: str) -> None:
        if self.facts.get(f"node:{target}") is not None:
            self.facts.effect(f"node:{target}", None)

    def has_session(self, disk: Disk) -> bool:
        found = self.facts.get(f"session:{disk.target}")
        if found and found["serial"] != disk.serial:
            raise Conflict(f"the disk of {disk.target} has another serial", target=disk.target)
        if found:
            need_session(self.facts, disk)
        return bool(found)

    def login(self, disk: Disk) -> None:
        node = self.facts.get(f"node:{disk.target}")
        if node is None:
            raise FailedPrecondition(f"there is no node record of {disk.target}")
        here = self.facts.get(f"target:{disk.target}") is not None
        own = f"{disk.target}/{node['initiator']}"
        if here and self.facts.get(f"acl:{own}") != node["chap"]:
            raise PermissionDenied(f"the target {disk.target} refused the CHAP secrets")
        session = {"serial": disk.serial, "size": disk.size_bytes}
        session |= {"initiator": node["initiator"], "chap": node["chap"]}
        self.facts.effect(f"session:{disk.target}", session)
        if here and self.facts.get(f"mapped:{own}") in (None, "unlinked"):
            raise Unavailable(f"{disk.target} let us in, but its disk did not appear")

    def logout(self, disk: Disk) -> None:
        if hangs(self.facts, disk):
            raise Unavailable(f"the session with {disk.target} did not end")
        for path, mount in self.facts.each("mount").items():
            if mount["serial"] == disk.serial:
                raise Busy(f"the disk of {disk.target} is mounted at {path}", path=path)
        if self.facts.get(f"session:{disk.target}") is not None:
            self.facts.effect(f"session:{disk.target}", None)

    def is_known(self, disk: Disk) -> bool:
        return self.facts.get(f"session:{disk.target}") is not None

    def is_lost(self, disk: Disk) -> bool:
        found = self.facts.get(f"session:{disk.target}")
        return found is None or "lost" in found

    def answers(self, disk: Disk) -> bool:
        return not hangs(self.facts, disk)

    def users(self, disk: Disk) -> list[str]:
        mounts = sorted(self.facts.each("mount").items())
        return [path for path, mount in mounts if mount["serial"] == disk.serial]

    def sessions(self, prefix: str = "") -> list[str]:
        return sorted(each for each in self.facts.names("session") if each.startswith(prefix))

    def nodes(self, prefix: str = "") -> list[str]:
        return sorted(each for each in self.facts.names("node") if each.startswith(prefix))

    def drop(self, disk: Disk) -> None:
        if self.is_known(disk):
            self.facts.effect(f"session:{disk.target}", None)

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
        found = {target: self.facts.get(f"session:{target}") for target in chaps}
        return {target: each for target, each in found.items() if each and "lost" not in each}

    def has_size(self, disk: Disk) -> bool:
        found = self.facts.get(f"session:{disk.target}")
        return bool(found and found["size"] == disk.size_bytes)

    def initiator(self) -> str:
        """Return a name that no other simulation has: two of them are two machines."""
        place = hashlib.sha256(str(self.facts.path).encode()).hexdigest()[:12]
        return f"iqn.2026-01.org.zfsilo:simulated.{place}"

    def problem(self, disk: Disk) -> str:
        found = self.facts.get(f"session:{disk.target}")
        if found is None:
            return f"there is no session with {disk.target}"
        return f"the session with {disk.target} is lost" if "lost" in found else ""

    def rescan(self, disk: Disk) -> None:
        need_session(self.facts, disk)
        session = self.facts.get(f"session:{disk.target}")
        self.facts.effect(f"session:{disk.target}", session | {"size": disk.size_bytes})


def hangs(facts: Facts, disk: Disk) -> bool:
    """Tell whether nothing answers behind a session that stands."""
    found = facts.get(f"session:{disk.target}")
    return bool(found and "hangs" in found)


def need_session(facts: Facts, disk: Disk) -> None:
    """Fail unless a live session leads to a disk."""
    found = facts.get(f"session:{disk.target}")
    if found is None:
        raise FailedPrecondition(f"there is no session of {disk.target}", target=disk.target)
    if "lost" in found:
        raise Unavailable(f"the session with {disk.target} was lost and is being recovered")

"""Steps on the access of initiators to a target: ACLs, secrets, mapped LUNs, live sessions.

Those that do not map a LUN serve every transport: host/transports.py.
"""

from __future__ import annotations

from zfsilod.engine.step import Guard, HostStep, OneWay
from zfsilod.host.transports import target_adapter
from zfsilod.model.errors import Conflict, FailedPrecondition
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import transport_of
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters


class NoSession(Guard, tag="NoSession", part="TARGET"):
    """The initiator has no live session with the target. Never ends one."""

    volatile = True
    target: str
    initiator: str
    volume: str
    host: str

    def probe(self, host: HostAdapters) -> bool:
        return not target_adapter(host, self.target).has_session(self.target, self.initiator)

    def refusal(self, _host: HostAdapters) -> FailedPrecondition:
        # The kernel's NVMe target tells that clients are connected, and not which ones.
        is_known = transport_of(self.target) == "ISCSI"
        state, then = ("is still", "") if is_known else ("may still be", ", then use --fence")
        return FailedPrecondition(
            f"host {self.host} {state} logged in to {self.volume}: disconnect it there first{then}",
            reason="SESSION_LIVE",
            volume=self.volume,
            host=self.host,
        )

    def fact(self) -> str:
        return f"{self.initiator} is not logged in"

    def describe_do(self) -> str:
        return f"check that {self.initiator} is not logged in to {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,), initiators=((self.target, self.initiator),))


class Fenced(OneWay, tag="Fenced", part="TARGET"):
    """The initiator has no live session: it may log out for a while, then its session is ended.

    One-way: a fenced initiator must not come back by itself; if it has access, it logs in again.
    """

    volatile = True
    final = (True,)
    atomic = False
    target: str
    initiator: str
    grace_s: int

    @property
    def waits(self) -> bool:
        return self.grace_s > 0

    def probe(self, host: HostAdapters) -> bool:
        return not target_adapter(host, self.target).has_session(self.target, self.initiator)

    def do(self, host: HostAdapters) -> None:
        target_adapter(host, self.target).end_session(
            self.target, self.initiator, grace_s=self.grace_s
        )

    def fact(self) -> str:
        return f"{self.initiator} is not logged in"

    def describe_do(self) -> str:
        after = f" after {self.grace_s} s" if self.grace_s else ""
        return f"end the session of {self.initiator} with {self.target}{after}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,), initiators=((self.target, self.initiator),))


class NoUnknownAcls(Guard, tag="NobodyAdmitted", part="TARGET"):
    """The target has no ACL.

    An ACL without a publication may be in use all the same, perhaps because the store was lost: it
    is reported, never removed in passing.
    """

    volatile = True
    target: str

    def probe(self, host: HostAdapters) -> bool:
        if target_adapter(host, self.target).list_acls(self.target):
            raise self.refusal(host)
        return True

    def refusal(self, host: HostAdapters) -> Conflict:
        initiators = ", ".join(target_adapter(host, self.target).list_acls(self.target))
        return Conflict(
            f"the target {self.target} has ACLs of {initiators}, which no publication names: "
            "see zfsiloctl orphan list",
            target=self.target,
        )

    def fact(self) -> str:
        return "target has no ACL"

    def describe_do(self) -> str:
        return f"check that target {self.target} has no ACL"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,))


class Acl(HostStep, tag="Acl", part="TARGET"):
    """The target allows this initiator, with these secrets, and besides it only `allowed`."""

    volatile = True
    target: str
    initiator: str
    secret: str  # a name; the secret itself never leaves store and kernel
    allowed: tuple[str, ...]

    def probe(self, host: HostAdapters) -> bool:
        return target_adapter(host, self.target).has_acl(
            self.target, self.initiator, chap=host.chap(self.secret), allowed=self.allowed
        )

    def do(self, host: HostAdapters) -> None:
        target_adapter(host, self.target).add_acl(
            self.target, self.initiator, chap=host.chap(self.secret)
        )

    def undo(self, host: HostAdapters) -> None:
        target_adapter(host, self.target).remove_acl(self.target, self.initiator)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not target_adapter(host, self.target).exists(self.target, self.initiator)

    def fact(self) -> str:
        return f"target has an ACL of {self.initiator}"

    def describe_do(self) -> str:
        return f"create ACL of {self.initiator} on {self.target}"

    def describe_undo(self) -> str:
        return f"remove ACL of {self.initiator} from {self.target}"

    def resources(self) -> Resources:
        return Resources(
            targets=(self.target,),
            initiators=((self.target, self.initiator),),
            secrets=(self.secret,),
        )


class AclSecrets(HostStep, tag="AclSecrets", part="TARGET"):
    """The ACL of this initiator has these secrets, no longer the previous ones.

    A live session goes on. An ACL that is gone gets the secrets when it is created again.
    """

    volatile = True
    target: str
    initiator: str
    secret: str  # names, as in Acl
    previous: str

    def probe(self, host: HostAdapters) -> bool:
        return target_adapter(host, self.target).has_secrets(
            self.target, self.initiator, chap=host.chap(self.secret)
        )

    def do(self, host: HostAdapters) -> None:
        target_adapter(host, self.target).set_secrets(
            self.target, self.initiator, chap=host.chap(self.secret)
        )

    def undo(self, host: HostAdapters) -> None:
        target_adapter(host, self.target).set_secrets(
            self.target, self.initiator, chap=host.chap(self.previous)
        )

    def safe_untried(self, _host: HostAdapters) -> bool:
        return True  # the previous secrets are set again

    def fact(self) -> str:
        return f"ACL of {self.initiator} has the new secrets"

    def describe_do(self) -> str:
        return f"set new secrets in the ACL of {self.initiator} on {self.target}"

    def describe_undo(self) -> str:
        return f"restore the previous secrets in the ACL of {self.initiator} on {self.target}"

    def resources(self) -> Resources:
        return Resources(
            targets=(self.target,),
            initiators=((self.target, self.initiator),),
            secrets=(self.secret, self.previous),
        )


class MappedLun(HostStep, tag="MappedLun", part="TARGET"):
    """The initiator sees LUN 0, write-protected or not."""

    volatile = True
    target: str
    initiator: str
    readonly: bool

    def probe(self, host: HostAdapters) -> bool:
        return host.lio.has_mapped_lun(self.target, self.initiator, readonly=self.readonly)

    def do(self, host: HostAdapters) -> None:
        host.lio.map_lun(self.target, self.initiator, readonly=self.readonly)

    def undo(self, host: HostAdapters) -> None:
        host.lio.unmap_lun(self.target, self.initiator)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not host.lio.exists(self.target, self.initiator)

    def fact(self) -> str:
        return f"LUN 0 is mapped for {self.initiator}{self._mode()}"

    def describe_do(self) -> str:
        return f"map LUN 0 of {self.target} for {self.initiator}{self._mode()}"

    def describe_undo(self) -> str:
        return f"unmap LUN 0 of {self.target} for {self.initiator}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,), initiators=((self.target, self.initiator),))

    def _mode(self) -> str:
        return " (read-only)" if self.readonly else ""


class NoReservations(OneWay, tag="NoReservations", part="TARGET"):
    """No persistent reservation of a client without an ACL is saved; "": none of the volume.

    The kernel forgets a registration with its ACL, and leaves it in the file, from which it would
    come back at the next boot. One-way: what the kernel has forgotten is not saved again.
    """

    volatile = False
    serial: str
    client: str = ""  # its IQN

    def probe(self, host: HostAdapters) -> bool:
        return not host.lio.has_reservations(self.serial, self.client)

    def do(self, host: HostAdapters) -> None:
        host.lio.forget_reservations(self.serial, self.client)

    def fact(self) -> str:
        return f"no persistent reservation of {self._whose} is saved"

    def describe_do(self) -> str:
        return f"remove the saved persistent reservations of {self._whose}"

    def resources(self) -> Resources:
        return Resources(volumes=(self.serial,))

    @property
    def _whose(self) -> str:
        return self.client or "any client"


class NoAcl(OneWay, tag="NoAcl", part="TARGET"):
    """The target has no ACL of this initiator. For orphans only.

    One-way: an ACL without a publication is not created again.
    """

    volatile = True
    final = (True,)
    atomic = False
    target: str
    initiator: str

    def probe(self, host: HostAdapters) -> bool:
        return not target_adapter(host, self.target).exists(self.target, self.initiator)

    def do(self, host: HostAdapters) -> None:
        if transport_of(self.target) == "ISCSI":
            host.lio.unmap_lun(self.target, self.initiator)
        target_adapter(host, self.target).remove_acl(self.target, self.initiator)

    def fact(self) -> str:
        return f"target has no ACL of {self.initiator}"

    def describe_do(self) -> str:
        return f"remove orphaned ACL of {self.initiator} from {self.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.target,), initiators=((self.target, self.initiator),))

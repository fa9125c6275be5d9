"""The kernel's keyring of the simulated host: PSKs of TLS over NVMe/TCP, as their digests."""

from __future__ import annotations

from zfsilod.host.fake.secrets import digest
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.chap import Chap


def has_psk(facts: Facts, target: str, chap: Chap, *, client: bool = False) -> bool:
    """Tell whether there is the PSK of a connection, and no other one; none is needed without TLS.

    A client accepts another one beside it that a target of this host has.
    """
    present = facts.get(f"psk:{target}/{chap.username}") or []
    if client and facts.get(f"acl:{target}/{chap.username}") is not None:
        return not chap.has_tls or digest(chap) in present
    return not chap.has_tls or present == [digest(chap)]


def put_psk(facts: Facts, target: str, chap: Chap, *, client: bool = False) -> None:
    """Add the PSK of a connection in place of a former one, if it has one.

    A client leaves that of a target of this host.
    """
    if has_psk(facts, target, chap, client=client):
        return
    name = f"{target}/{chap.username}"
    present = list(facts.get(f"psk:{name}") or [])
    kept = present if client and facts.get(f"acl:{name}") is not None else []
    facts.effect(f"psk:{name}", [*kept, digest(chap)])


def remove_psk(facts: Facts, target: str, initiator: str) -> None:
    """Remove the PSK of a host and a subsystem."""
    if facts.get(f"psk:{target}/{initiator}") is not None:
        facts.effect(f"psk:{target}/{initiator}", None)


def forget_psk(facts: Facts, target: str) -> None:
    """Remove the PSK of a client; a target of this host still needs its own."""
    for name in facts.names("psk"):
        subsystem, _slash, host = name.partition("/")
        if subsystem == target and facts.get(f"acl:{name}") is None:
            remove_psk(facts, target, host)

"""The identity of this host as it was when zfsilod first started: it is decided once, and kept.

Certificates, target names and the records of servers contain it. Later host names, initiator names
and settings are compared with it, and what differs is shown. The file is STATE/identity.json.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from zfsilod.model.record import Record
from zfsilod.storage.files import write_private

if TYPE_CHECKING:
    from pathlib import Path

NAME = "identity.json"
RESTART = "systemctl restart zfsilod.service"


class KeptIdentity(Record):
    """The names of this host; "": it had none then."""

    host_id: str
    prefix: str = ""  # of new targets
    initiator: str = ""
    nqn: str = ""


class IdentityChange(Record):
    """A name that differs from the kept one."""

    name: str  # host_name, host_id, iqn_prefix, initiator_name or host_nqn
    sentence: str
    command: str


def read(state: Path) -> KeptIdentity | None:
    """Return the kept identity; None before the first start, or when only root may read it."""
    try:
        values = json.loads((state / NAME).read_text())
        known = {name: str(values[name]) for name in KeptIdentity.FIELDS if name in values}
        return KeptIdentity(**known) if known.get("host_id") else None
    except (OSError, ValueError, TypeError):
        return None


def keep(state: Path, present: KeptIdentity) -> KeptIdentity:
    """Keep the names that are not kept yet, and return the kept ones."""
    kept = read(state) or present
    missing = {name: getattr(present, name) for name in kept.FIELDS if not getattr(kept, name)}
    filled = kept.but(**missing)
    if filled != read(state):
        text = json.dumps({name: getattr(filled, name) for name in filled.FIELDS}, indent=1)
        write_private(state / NAME, f"{text}\n".encode())
    return filled


def forget(state: Path) -> None:
    """Forget the identity: the next start keeps another one."""
    (state / NAME).unlink(missing_ok=True)


def changes(
    kept: KeptIdentity, present: KeptIdentity, host_name: str, state: Path, *, is_set: bool
) -> list[IdentityChange]:
    """Return what differs from the kept identity; `is_set`: the configuration has a host id."""
    accept = f"rm {state / NAME} && {RESTART}"
    differing = []
    if not is_set and host_name != kept.host_id:
        differing.append(
            IdentityChange(
                name="host_name",
                sentence=f"the host name is {host_name}; this host keeps the id {kept.host_id}: "
                "its certificates, its targets and its servers have that id",
                command=f"hostnamectl hostname {kept.host_id}, or host_id = "
                f'"{kept.host_id}" below [daemon] in zfsilod.toml',
            )
        )
    # iSCSI names are compared without case, NQNs byte by byte.
    for name, what, before, now, is_same in (
        ("host_id", "daemon.host_id", kept.host_id, present.host_id, str.__eq__),
        ("iqn_prefix", "the prefix of new targets", kept.prefix, present.prefix, _equal_iqns),
        ("initiator_name", "the initiator name", kept.initiator, present.initiator, _equal_iqns),
        ("host_nqn", "the NQN of this host", kept.nqn, present.nqn, str.__eq__),
    ):
        if before and not is_same(before, now):
            differing.append(
                IdentityChange(
                    name=name,
                    sentence=f"{what} is {now or 'missing'}, and was {before}: {MEANING[name]}",
                    command=accept,
                )
            )
    return differing


def _equal_iqns(name: str, other: str) -> bool:
    return name.lower() == other.lower()


MEANING = {
    "host_id": "certificates, servers and target names have the former one",
    "iqn_prefix": "published volumes keep their targets until they are unpublished",
    "initiator_name": "servers admit the former one; register the new one with zfsiloctl join",
    "host_nqn": "zfsilo has names of its own over NVMe, so its volumes are used as before; servers "
    "of other makers may admit only the former one",
}

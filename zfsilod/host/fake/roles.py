"""A zvol of the simulated host that becomes a replica, or is one no longer.

A replica has what was received in facts of its own. On a real host both are the same blocks.
"""

from __future__ import annotations

from zfsilod.host.fake.snapshot_sets import guid_of, snapshot_guid
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from zfsilod.host.fake.facts import Facts

    Changes = tuple[dict[str, Any], dict[str, Any]]


def as_primary(facts: Facts, zvol: dict[str, Any]) -> Changes:
    """Return a promoted replica, and the facts that change with it."""
    uid, sets = zvol["uid"], zvol.get("replica_sets", {})
    blocks = facts.get(f"replica-blocks:{uid}") or {}
    content = facts.get(f"replica-content:{uid}")
    also: dict[str, Any] = {
        f"blocks:{uid}": blocks or None,
        f"content:{uid}": content,
        f"replica-blocks:{uid}": None,
        f"replica-content:{uid}": None,
    }
    txg = max((one.get("txg", 0) for one in facts.of_kind("cut").values()), default=0)
    for number, (name, guid) in enumerate(sets.items(), start=1):
        empty: dict[str, Any] = {
            "of": {},
            "given_up": [],
            "marks": {},
            "sizes": {},
            "txg": txg + number,
        }
        former = zvol.get("former_sets", {}).get(name)
        known: dict[str, Any] = facts.get(f"cut:{name}") or former or empty
        guids = known.get("guids", {})
        if guid != guid_of(f"{uid}@{name}"):
            guids = guids | {uid: guid}
        also[f"cut:{name}"] = known | {
            "of": known["of"] | {uid: content},
            "sizes": known["sizes"] | {uid: zvol["size"]},
            "blocks": known.get("blocks", {}) | {uid: blocks},
            **({"guids": guids} if guids else {}),
        }
    kept = ("replica_sets", "former_sets")
    return {name: value for name, value in zvol.items() if name not in kept}, also


def as_replica(facts: Facts, zvol: dict[str, Any]) -> Changes:
    """Return a volume as a replica of its newest snapshot, and the facts that change with it."""
    uid = zvol["uid"]
    if "replica_sets" in zvol:
        return zvol, {}
    own = {name: one for name, one in facts.of_kind("cut").items() if uid in one["of"]}
    newest = max(own, key=lambda name: own[name].get("txg", 0), default="")
    also: dict[str, Any] = {
        f"replica-blocks:{uid}": facts.get(f"blocks:{uid}") or {},
        f"replica-content:{uid}": facts.get(f"content:{uid}"),
        f"blocks:{uid}": None,
        f"content:{uid}": None,
    }
    sets = {}
    if newest:
        sets = {newest: snapshot_guid(facts, uid, newest)}
        left = {volume: one for volume, one in own[newest]["of"].items() if volume != uid}
        also[f"cut:{newest}"] = own[newest] | {"of": left} if left else None
    has_marks = bool(newest and own[newest]["marks"])
    former = {"former_sets": {newest: own[newest]}} if has_marks else {}  # for the way back
    return zvol | {"replica_sets": sets} | former, also

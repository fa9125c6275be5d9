"""The facts of snapshot sets, which zvols and snapshots of the simulated host share.

`cut:UID` has the contents and sizes of the zvols of a set by their uid, the user properties, and
the uids whose snapshots are released (`given_up`). The names are those of stored simulations.
"""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from zfsilod.host.fake.facts import Facts


def guid_of(text: str) -> str:
    """Return a guid that depends on a text only."""
    import hashlib

    return str(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16))


def snapshot_guid(facts: Facts, volume: str, uid: str) -> str:
    """Return the guid of the snapshot of a volume in a set; it stays when the volume is renamed."""
    kept = (facts.get(f"cut:{uid}") or {}).get("guids", {}).get(volume)
    return str(kept or guid_of(f"{volume}@{uid}"))


def with_uid(facts: Facts, old: str, new: str) -> dict[str, Any]:
    """Return the changes of other facts when the zvol of a volume gets another uid."""
    changes: dict[str, Any] = {}
    for kind in ("blocks", "content"):
        changes |= {f"{kind}:{old}": None, f"{kind}:{new}": facts.get(f"{kind}:{old}")}
    for name, snapshot_set in facts.of_kind("cut").items():
        if old in snapshot_set["of"]:
            renamed = {
                part: {new if volume == old else volume: one for volume, one in values.items()}
                for part, values in snapshot_set.items()
                if part in ("of", "sizes", "blocks")
            }
            given_up = [new if volume == old else volume for volume in snapshot_set["given_up"]]
            rest = {name: one for name, one in snapshot_set.items() if name != "guids"}
            changes[f"cut:{name}"] = rest | renamed | {"given_up": given_up}
            guids = {n: one for n, one in snapshot_set.get("guids", {}).items() if n != old}
            if (guid := snapshot_guid(facts, old, name)) != guid_of(f"{new}@{name}"):
                guids[new] = guid
            if guids:
                changes[f"cut:{name}"]["guids"] = guids
    for name, zvol in facts.of_kind("zvol").items():
        if zvol.get("origin", ["", ""])[1] == old:
            changes[f"zvol:{name}"] = zvol | {"origin": [zvol["origin"][0], new]}
    return changes


def remaining(facts: Facts, uid: str, snapshot_set: Any, *, without: str = "") -> Any:
    """Return a set without the released snapshots that have no clone or hold; None: it is empty.

    `without`: a clone that is being destroyed.
    """
    needed = [
        origin[1]
        for name, zvol in facts.of_kind("zvol").items()
        if name != without and (origin := zvol.get("origin")) and origin[0] == uid
    ]
    needed += [volume for volume in snapshot_set["of"] if holders(facts, volume, uid)]
    released = snapshot_set["given_up"]
    kept = {v: c for v, c in snapshot_set["of"].items() if v not in released or v in needed}
    still_released = [volume for volume in released if volume in kept]
    return snapshot_set | {"of": kept, "given_up": still_released} if kept else None


def holders(facts: Facts, volume: str, uid: str) -> list[str]:
    """Return the peers that hold a snapshot: `peer:VOLUME/SET/PEER`."""
    prefix = f"{volume}/{uid}/"
    return [name.removeprefix(prefix) for name in facts.names("peer") if name.startswith(prefix)]

"""What a pool keeps for the peers of a zvol: snapshots with holds, and bookmarks."""

from __future__ import annotations

import re

from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.replica import KeptSnapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zfsilod.host.zfs_output import Properties

HOLD = "zfsilo:peer:"  # then the name of the peer
OWN = re.compile(r"([@#])zfsilo-([0-9a-f]{32})$")


def parse_kept(
    rows: Mapping[str, Properties], holds: Mapping[str, Sequence[str]]
) -> tuple[KeptSnapshot, ...]:
    """Return the snapshots and bookmarks of zfsilo in a listing.

    `rows`: guid and createtxg of each name; `holds`: the tags of each snapshot that has some.
    """
    kept: dict[str, KeptSnapshot] = {}
    for name, row in rows.items():
        match = OWN.search(name)
        if match is None:
            continue
        sign, uid = match.groups()
        txg = int(row["createtxg"][0])
        one = kept.get(uid) or KeptSnapshot(uid=uid, guid=row["guid"][0], created_txg=txg)
        tags = holds.get(name, ())
        peers = tuple(tag.removeprefix(HOLD) for tag in tags if tag.startswith(HOLD))
        kept[uid] = one.but(bookmarked=True) if sign == "#" else one.but(exists=True, peers=peers)
    return tuple(kept.values())

"""The facts of a volume as a tree, with the result of each probe."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl.output.table import BAD, DOUBT, GOOD, clean, paint, shorten, width

if TYPE_CHECKING:
    from collections.abc import Sequence

SECTIONS = {
    "Zvol": "zvol",
    "NotNewer": "zvol",
    "ZvolSize": "zvol",
    "ZvolProperty": "zvol",
    "Backstore": "export",
    "Target": "export",
    "Lun": "export",
    "Portals": "export",
    "Enabled": "export",
    "NoUnknownAcls": "export",
    "Acl": "access",
    "MappedLun": "access",
    "Node": "session",
    "Session": "session",
    "SessionPortal": "session",
    "LossWait": "session",
    "DiskSize": "session",
    "Formatted": "filesystem",
    "FilesystemUuidRegenerated": "filesystem",
    "FilesystemWorks": "filesystem",
    "StagingMount": "filesystem",
    "FilesystemGrown": "filesystem",
    "MountPoint": "mounts",
    "BindMount": "mounts",
    "DeviceBindMount": "mounts",
}
"""The section of the tree by kind of fact; a kind of a newer server is a section of its own."""

WIDEST = 8  # of the verdicts


def show_facts(name: str, facts: Sequence[Any]) -> None:
    """Print facts by section, one a line."""
    print(name)
    sections: dict[str, list[Any]] = {}
    for fact in facts:
        sections.setdefault(SECTIONS.get(fact.kind, str(fact.kind)), []).append(fact)
    for place, (section, members) in enumerate(sections.items()):
        last = place == len(sections) - 1
        print(f"{'└─' if last else '├─'} {clean(section)}")
        stem = "   " if last else "│  "
        for number, fact in enumerate(members):
            branch = "└─" if number == len(members) - 1 else "├─"
            word, colour = _verdict(fact)
            text = clean(fact.text) if fact.wanted else f"not: {clean(fact.text)}"
            verdict = paint(colour, f"{word:<{WIDEST}}")
            print(f"{stem}{branch} {verdict} {shorten(text, width() - 15)}")
            for line in textwrap.wrap(clean(fact.problem), width() - 15):
                print(f"{stem}{' ' * (WIDEST + 4)}{line}")


def all_hold(facts: Sequence[Any]) -> bool:
    """Tell whether no fact is known to differ from the records."""
    return not any(_verdict(fact)[0] in ("NO", "CONFLICT") for fact in facts)


def _verdict(fact: Any) -> tuple[str, str]:
    """Return the verdict on a fact, and its colour."""
    if fact.truth == pb.TRUTH_CONFLICT:
        return "CONFLICT", BAD
    if fact.truth == pb.TRUTH_UNKNOWN:
        return "?", DOUBT
    if (fact.truth == pb.TRUTH_PRESENT) == fact.wanted:
        return "ok", GOOD
    return "NO", BAD

"""The facts that make up a volume, as a tree: each with what a look at the host gave."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl.output.table import BAD, DOUBT, GOOD, clean, paint, shorten, width

if TYPE_CHECKING:
    from collections.abc import Sequence

SECTIONS = {
    "Zvol": "zvol",
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
    "DiskSize": "session",
    "Formatted": "filesystem",
    "FilesystemUuidRegenerated": "filesystem",
    "StagingMount": "filesystem",
    "FilesystemGrown": "filesystem",
    "MountPoint": "mounts",
    "BindMount": "mounts",
    "DeviceBindMount": "mounts",
}
"""The section of the tree by kind of fact; a kind of a newer server is a section of its own."""

WIDEST = 5  # of the words below


def show_facts(name: str, facts: Sequence[Any]) -> None:
    """Print facts by section, one a line."""
    print(name)
    sections = [(section, list(members)) for section, members in groupby(facts, _section)]
    for place, (section, members) in enumerate(sections):
        last = place == len(sections) - 1
        print(f"{'└─' if last else '├─'} {clean(section)}")
        stem = "   " if last else "│  "
        for number, fact in enumerate(members):
            branch = "└─" if number == len(members) - 1 else "├─"
            print(f"{stem}{branch} {_line(fact, columns=width() - 12)}")
            for line in textwrap.wrap(clean(fact.problem), width() - 12):
                print(f"{stem}         {line}")


def all_hold(facts: Sequence[Any]) -> bool:
    """Tell whether nothing is known to differ from the records."""
    return not any(_verdict(each)[0] in ("NO", "ALIEN") for each in facts)


def _section(fact: Any) -> str:
    return SECTIONS.get(fact.kind, str(fact.kind))


def _line(fact: Any, columns: int) -> str:
    word, colour = _verdict(fact)
    text = clean(fact.text)
    if not fact.wanted:
        text = f"not: {text}"
    return f"{paint(colour, f'{word:<{WIDEST}}')} {shorten(text, columns)}"


def _verdict(fact: Any) -> tuple[str, str]:
    """Return in a word whether a fact is as it should be, and its colour."""
    if fact.truth == pb.TRUTH_CONFLICT:
        return "ALIEN", BAD
    if fact.truth == pb.TRUTH_UNKNOWN:
        return "?", DOUBT
    if (fact.truth == pb.TRUTH_PRESENT) == fact.wanted:
        return "ok", GOOD
    return "NO", BAD

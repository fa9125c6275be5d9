"""The facts that make up a volume, as a tree: each with what a look at the host gave."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl.output.table import BAD, DOUBT, GOOD, clean, paint, shorten, width

if TYPE_CHECKING:
    from collections.abc import Sequence

# Each step: the rung that people know it by, what it says, and the parameter that tells which.
STEPS = {
    "Zvol": ("zvol", "zvol", "dataset"),
    "ZvolSize": ("zvol", "its size is", "size_bytes"),
    "ZvolProperty": ("zvol", "property", "name"),
    "Backstore": ("export", "backstore", "name"),
    "Target": ("export", "target", "target"),
    "Lun": ("export", "LUN 0 is the backstore", ""),
    "Portals": ("export", "listens at", "portals"),
    "Enabled": ("export", "target is on", ""),
    "NoUnknownAcls": ("export", "nobody is admitted", ""),
    "Acl": ("admission", "admits", "initiator"),
    "MappedLun": ("admission", "LUN is mapped for", "initiator"),
    "Node": ("session", "node record for", "target"),
    "Session": ("session", "logged in", ""),
    "DiskSize": ("session", "disk has the size", ""),
    "Formatted": ("filesystem", "filesystem is made", ""),
    "StagingMount": ("filesystem", "mounted for use at", "path"),
    "FilesystemGrown": ("filesystem", "fills its disk", ""),
    "MountPoint": ("mounts", "mount point", "path"),
    "BindMount": ("mounts", "mounted at", "path"),
    "DeviceBindMount": ("mounts", "device at", "path"),
}
WIDEST = 5  # of the words below


def show_facts(name: str, facts: Sequence[Any]) -> None:
    """Print facts, rung by rung, one a line."""
    print(name)
    rungs = [(rung, list(some)) for rung, some in groupby(facts, _rung)]
    for place, (rung, some) in enumerate(rungs):
        last = place == len(rungs) - 1
        print(f"{'└─' if last else '├─'} {rung}")
        stem = "   " if last else "│  "
        for number, fact in enumerate(some):
            branch = "└─" if number == len(some) - 1 else "├─"
            print(f"{stem}{branch} {_line(fact, room=width() - 12)}")
            for line in textwrap.wrap(clean(fact.problem), width() - 12):
                print(f"{stem}         {line}")


def all_hold(facts: Sequence[Any]) -> bool:
    """Tell whether nothing is known to differ from the records."""
    return not any(_verdict(each)[0] in ("NO", "ALIEN") for each in facts)


def _rung(fact: Any) -> str:
    name: str = fact.step
    return STEPS[name][0] if name in STEPS else name


def _words(fact: Any) -> str:
    """Return a fact in few words; one of a newer server in its own."""
    if fact.step not in STEPS:
        return str(fact.text)
    _rung, says, which = STEPS[fact.step]
    return f"{says} {fact.parameters[which]}" if which else says


def _line(fact: Any, room: int) -> str:
    word, colour = _verdict(fact)
    text = clean(_words(fact))
    if not fact.wanted:
        text = f"not: {text}"
    return f"{paint(colour, f'{word:<{WIDEST}}')} {shorten(text, room)}"


def _verdict(fact: Any) -> tuple[str, str]:
    """Return in a word whether a fact is as it should be, and its colour."""
    if fact.truth == pb.TRUTH_CONFLICT:
        return "ALIEN", BAD
    if fact.truth == pb.TRUTH_UNKNOWN:
        return "?", DOUBT
    if (fact.truth == pb.TRUTH_SO) == fact.wanted:
        return "ok", GOOD
    return "NO", BAD

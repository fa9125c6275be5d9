"""`zfsiloctl status`: a summary of a host, and what needs attention."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl.client import dial
from zfsilod.ctl.output.messages import as_json
from zfsilod.ctl.output.table import BAD, GOOD, clean, paint, show_block
from zfsilod.ctl.parse import bare
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.sizes import show_size

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

STATES = ("CREATED", "PUBLISHED", "CONNECTED", "STAGED", "MOUNTED", "INCOMPLETE")
BAR = 20


def status(args: Namespace) -> None:
    """Show a summary of a host, and what needs attention."""
    with dial(args) as server:
        summary = server.ask("GetStatus", pb.GetStatusRequest())
    if args.json:
        print(as_json(summary))
        return
    about = summary.server
    hosts = _number(summary.hosts, "registered host")
    show_block(
        f"host {bare(about.host, 'hosts')} (zfsilod {about.version})",
        [
            ("Serves", _pool(summary) if summary.root else ""),
            ("Volumes", _counts(summary.volumes, STATES) or "none"),
            (
                "Publications",
                f"{summary.publications or 'none'}; {hosts}" if summary.hosts else "",
            ),
            ("Operations", _counts(summary.operations, sorted(summary.operations)) or "none"),
        ],
    )
    print()
    if not summary.attention:
        print(paint(GOOD, "nothing needs attention"))
        return
    print(paint(BAD, f"{_number(summary.attention_count, 'problem')} to look at"))
    for (sentence, command), names in _by_cause(summary.attention).items():
        print(f"  {clean(', '.join(names))}: {clean(sentence)}")
        if command and command not in sentence:
            print(f"    try: {command}")
    if summary.attention_count > len(summary.attention):
        print(f"  and {summary.attention_count - len(summary.attention)} more")


def _by_cause(attention: Any) -> dict[tuple[str, str], list[str]]:
    """Return the names of what has a problem, by sentence and command: one cause is one line."""
    causes: dict[tuple[str, str], list[str]] = {}
    for problem in attention:
        name = bare(problem.subject, "volumes") or "this host"
        causes.setdefault((problem.sentence, problem.command), []).append(name)
    return causes


def _pool(summary: Any) -> str:
    """Return the root with the usage of its pool, and the size that thin volumes may grow to."""
    space = summary.capacity
    if not space.total_bytes:
        return f"{summary.root} (capacity unknown)"
    share = (space.total_bytes - space.available_bytes) / space.total_bytes
    bar = "#" * round(BAR * share)
    thin = f"thin volumes provision {show_size(summary.promised_bytes)}"
    return (
        f"{summary.root} [{bar:.<{BAR}}] {share:.0%} of {show_size(space.total_bytes)}, "
        f"{thin} ({summary.promised_bytes / space.total_bytes:.0%})"
    )


def _counts(counts: Any, order: Any) -> str:
    return ", ".join(
        f"{counts[name]} {name.lower().replace('_', ' ')}" for name in order if counts.get(name)
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

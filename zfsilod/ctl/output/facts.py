"""The facts of a volume: a tree with the result of each probe, and what they say together."""

from __future__ import annotations

from zfsilod.ctl import messages as pb
from zfsilod.ctl.output.table import BAD, DOUBT, GOOD, clean, paint, shorten, width
from zfsilod.model.host_facts import HIDDEN, SECTIONS
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

OK, NO, CONFLICT, UNSEEN = "ok", "NO", "CONFLICT", "hidden"
DIFFERENT = (NO, CONFLICT)
WIDEST = 8  # of the verdicts


def show_facts(name: str, facts: Sequence[Any]) -> None:
    """Print facts by section, one a line."""
    import textwrap  # `volume list` needs no facts

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
            problem = "" if word == UNSEEN else clean(fact.problem)
            for line in textwrap.wrap(problem, width() - 15):
                print(f"{stem}{' ' * (WIDEST + 4)}{line}")


def all_hold(facts: Sequence[Any]) -> bool:
    """Tell whether no fact is known to differ from the records."""
    return not any(_verdict(fact)[0] in DIFFERENT for fact in facts)


def noteworthy(facts: Sequence[Any]) -> list[Any]:
    """Return the facts that differ from the records, or are unknown although they can be seen."""
    return [fact for fact in facts if _verdict(fact)[0] not in (OK, UNSEEN)]


def summary(facts: Sequence[Any]) -> str:
    """Return how many facts are as recorded, and how many are not or unknown."""
    words = [_verdict(fact)[0] for fact in facts]
    unseen = words.count(UNSEEN)
    seen = len(words) - unseen
    good = words.count(OK)
    count = f"all {seen}" if good == seen else f"{good} of {seen}"
    rest = f"; {unseen} more are {HIDDEN}" if unseen else ""
    return f"{count} facts are as recorded{rest}"


def _verdict(fact: Any) -> tuple[str, str]:
    """Return the verdict on a fact, and its colour."""
    if fact.truth == pb.TRUTH_CONFLICT:
        return CONFLICT, BAD
    if fact.truth == pb.TRUTH_UNKNOWN:
        return (UNSEEN, "") if fact.problem == HIDDEN else ("?", DOUBT)
    if (fact.truth == pb.TRUTH_PRESENT) == fact.wanted:
        return OK, GOOD
    return NO, BAD

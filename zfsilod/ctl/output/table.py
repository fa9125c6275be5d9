"""Tables and blocks of text. Colours only on a terminal, and not with NO_COLOR."""

from __future__ import annotations

import os
import sys

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import TextIO

BOLD, RESET = "\x1b[1m", "\x1b[0m"
GOOD, BAD, DOUBT = "\x1b[32m", "\x1b[31m", "\x1b[33m"
RIGHT = ("SIZE", "TOTAL", "USED", "FREE", "EPOCH")
WHOLE = (*RIGHT, "STATE", "AGE", "TOOK", "ID")  # columns that are never cut
GAP = "  "
MIN_WIDTH = 40
NARROWEST = 6  # of the columns that are cut


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Print rows in columns, without the columns that are empty in every row."""
    used = [
        column
        for column, _header in enumerate(headers)
        if not rows or column == 0 or any(row[column] for row in rows)
    ]
    names = [headers[column] for column in used]
    lines = [[clean(row[column]) or "-" for column in used] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    columns = width() - len(indent) - len(GAP) * (len(names) - 1)
    # Until a row fits, the first column becomes narrower, to half of the row; then others.
    others = [place for place, name in enumerate(names) if place and name not in WHOLE]
    for places, narrowest in (([0], columns // 2), (others, NARROWEST), ([0], NARROWEST)):
        while sum(widths) > columns and any(widths[place] > narrowest for place in places):
            widths[max(places, key=widths.__getitem__)] -= 1
    print(indent + paint(BOLD, _line(names, names, widths)))
    for line in lines:
        print(indent + _line(line, names, widths))


def show_block(title: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Print a title and named values, one a line, without the empty ones."""
    if title:
        print(paint(BOLD, title))
    lines = [(name, clean(value)) for name, value in pairs if value]
    longest = max((len(name) for name, _value in lines), default=0)
    for name, value in lines:
        print(f"  {name + ':':<{longest + 1}}  {value}")


def width() -> int:
    """Return the terminal's width in columns; without a terminal nothing is cut."""
    if not sys.stdout.isatty():
        return 1 << 16
    import shutil

    return max(MIN_WIDTH, shutil.get_terminal_size().columns)


def shorten(text: str, columns: int) -> str:
    """Return a text that fits, cut at its end and marked with an ellipsis."""
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def shorten_middle(text: str, columns: int) -> str:
    """Return a text that fits, cut in the middle: names often differ at their ends."""
    if len(text) <= columns:
        return text
    tail = (columns - 1) // 2
    return f"{text[: columns - 1 - tail]}…{text[len(text) - tail :]}"


def paint(colour: str, text: str) -> str:
    """Return a text in a colour, if standard output shows colours."""
    return f"{colour}{text}{RESET}" if colour and coloured(sys.stdout) else text


def clean(text: str) -> str:
    """Return text on one line, without control characters for the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def say(args: Namespace, sentence: str) -> None:
    """Print a sentence immediately, unless --json or --quiet is in effect."""
    if not (args.json or args.quiet):
        print(sentence, flush=True)


def coloured(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that shows colours (NO_COLOR, TERM=dumb)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return stream.isatty()


def _line(cells: Sequence[str], names: Sequence[str], widths: Sequence[int]) -> str:
    cut = [
        shorten(cell, columns) if place else shorten_middle(cell, columns)
        for place, (cell, columns) in enumerate(zip(cells, widths, strict=True))
    ]
    padded = (
        cell.rjust(columns) if name in RIGHT else cell.ljust(columns)
        for cell, name, columns in zip(cut, names, widths, strict=True)
    )
    return GAP.join(padded).rstrip()

"""Tables and blocks of text for people. Colour only on a terminal that wants it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import TextIO

BOLD, RESET = "\x1b[1m", "\x1b[0m"
GOOD, BAD, DOUBT = "\x1b[32m", "\x1b[31m", "\x1b[33m"
RIGHT = ("SIZE", "TOTAL", "USED", "FREE", "EPOCH")
GAP = "  "
MIN_WIDTH = 40
NARROWEST = 6  # a column


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Print rows in columns; columns in which nobody has anything are left out."""
    used = [i for i, _ in enumerate(headers) if not rows or i == 0 or any(r[i] for r in rows)]
    names = [headers[i] for i in used]
    lines = [[clean(row[i]) or "-" for i in used] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    room = width() - len(indent) - len(GAP) * (len(names) - 1)
    while sum(widths) > room and max(widths[1:], default=0) > NARROWEST:
        # The name is what people need whole: of the others the widest gives way.
        widest = max(range(1, len(widths)), key=widths.__getitem__)
        widths[widest] -= 1
    lines = [[shorten(c, w) for c, w in zip(line, widths, strict=True)] for line in lines]
    names = [shorten(name, w) for name, w in zip(names, widths, strict=True)]
    head = _line(names, names, widths)
    print(indent + paint(BOLD, head))
    for line in lines:
        print(indent + _line(line, names, widths))


def show_block(title: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Print a title and named values, one a line; empty ones are left out."""
    if title:
        print(paint(BOLD, title))
    shown = [(name, clean(value)) for name, value in pairs if value]
    width = max((len(name) for name, _value in shown), default=0)
    for name, value in shown:
        print(f"  {name + ':':<{width + 1}}  {value}")


def width() -> int:
    """Return the terminal's width; what is no terminal is wide enough for everything."""
    if not sys.stdout.isatty():
        return 1 << 16
    import shutil

    return max(MIN_WIDTH, shutil.get_terminal_size().columns)


def shorten(text: str, room: int) -> str:
    """Return a text that fits, with a sign where something is left out."""
    return text if len(text) <= room else f"{text[: room - 1]}…"


def paint(colour: str, text: str) -> str:
    """Return a text in a colour, where the output shows colours."""
    return f"{colour}{text}{RESET}" if coloured(sys.stdout) else text


def clean(text: str) -> str:
    """Return text that cannot steer a terminal, on one line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def say(given: Namespace, sentence: str) -> None:
    """Tell people something, at once; neither programs nor those who asked for quiet."""
    if not (given.json or given.quiet):
        print(sentence, flush=True)


def coloured(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal whose user did not opt out (NO_COLOR, TERM=dumb)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return stream.isatty()


def _line(cells: Sequence[str], names: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if name in RIGHT else cell.ljust(width)
        for cell, name, width in zip(cells, names, widths, strict=True)
    )
    return GAP.join(padded).rstrip()

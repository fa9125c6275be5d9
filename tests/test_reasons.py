"""Error reasons: each one that the code uses is documented, and each documented one is used."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.model.errors import BY_NAME
from zfsilod.model.reasons import AREAS, REASONS, as_markdown

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[1] / "zfsilod"
CATALOGUE = PACKAGE / "model/reasons.py"
STATES = {"ABSENT", "CONNECTED", "STAGED", "MOUNTED"}  # an attachment's state as a reason


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != CATALOGUE:
            yield path, ast.parse(path.read_text())


def defaults() -> set[str]:
    """Return the reasons of errors that are raised without one."""
    return {kind("").reason for kind in BY_NAME.values() if kind.__name__ != "ZfsiloError"}


def test_every_reason_in_the_code_is_documented() -> None:
    unknown = [
        f"{path.relative_to(PACKAGE)}:{node.value.lineno}: {ast.unparse(node.value)}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "reason"
        if isinstance(node.value, ast.JoinedStr)
        or (isinstance(node.value, ast.Constant) and node.value.value not in REASONS)
    ]
    assert unknown == [], "add them to zfsilod/model/reasons.py"


def test_every_default_reason_is_documented() -> None:
    assert defaults() <= REASONS.keys()
    assert defaults() == AREAS["General"].keys()


def test_every_documented_reason_is_used() -> None:
    literals = {
        node.value
        for _path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert REASONS.keys() - literals - defaults() - STATES == set()


def test_each_reason_has_one_area_and_one_line() -> None:
    assert sum(map(len, AREAS.values())) == len(REASONS)
    assert all(
        meaning and "\n" not in meaning and "|" not in meaning for meaning in REASONS.values()
    )
    assert all(f"| `{reason}` |" in as_markdown() for reason in REASONS)

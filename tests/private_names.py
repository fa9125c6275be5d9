"""Lists where the tests reach into private names: `python -m tests.private_names [PATH...]`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parent
OWN = ("self", "cls", "super()")
# Documented names that only look private: of NamedTuple, and of os.
PUBLIC = {"_asdict", "_fields", "_make", "_replace", "_exit"}


def private_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each access to a private attribute, or import of one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value) not in OWN:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                (node.lineno, f"from {node.module} import {alias.name}")
                for alias in node.names
                if is_private(alias.name)
            )


def is_private(name: str) -> bool:
    """Tell whether a name starts with one underscore and is not documented."""
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


if __name__ == "__main__":
    for file in [Path(word) for word in sys.argv[1:]] or sorted(TESTS.rglob("*.py")):
        for line, text in private_names(file):
            print(f"{file}:{line}: {text}")

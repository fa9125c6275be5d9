"""Figures of the code in zfsilod/: lengths of functions and files, private functions, imports.

`python -m tests.bench.code` prints the private functions that are used once.
"""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.table import Figure, at_most, counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "zfsilod"
# A file imports from its own layer and from those before it (docs/architecture.md).
LAYERS = (
    *("model", "storage", "host", "engine", "systemd", "requests", "security", "config"),
    *("gateway", "service", "monitoring", "wire", "api", "ctl", "daemon"),
)
FUNCTION_LINES, LONGEST_FUNCTION, ONCE_PERCENT = 10, 60, 45
SHORTEST_FILE, LONGEST_FILE = 60, 350

Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = dict[str, set[str]]  # module: the modules that it imports, for types too


def figures() -> Iterator[Figure]:
    """Yield each figure, with the first offenders."""
    files, functions = trees(), all_functions()
    lengths = [length(function) for _file, function in functions]
    yield at_most("median function", median(lengths), FUNCTION_LINES, " lines")
    longest = [
        f"{file}:{function.name} {length(function)}"
        for file, function in functions
        if length(function) > LONGEST_FUNCTION
    ]
    yield from counted(f"functions over {LONGEST_FUNCTION} lines", longest)
    once, private = used_once(), private_functions()
    percent = 100 * len(once) / len(private)
    note = f" ({len(once)} of {len(private)})"
    yield at_most("private functions used once", percent, ONCE_PERCENT, " %", note=note)
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in files}
    yield Figure("files", f"{len(lines)}, median {median(lines.values()):.0f} lines")
    long = [f"{file} {count}" for file, count in lines.items() if count > LONGEST_FILE]
    short = [f"{file} {count}" for file, count in lines.items() if 1 < count < SHORTEST_FILE]
    yield from counted(f"files over {LONGEST_FILE} lines", long, strict=False)
    yield from counted(f"files under {SHORTEST_FILE} lines", short, strict=False)
    graph = imports()
    yield from counted("import cycles", [" ".join(sorted(group)) for group in cycles(graph)])
    yield from counted("upward imports", [f"{one} -> {other}" for one, other in upward(graph)])


@cache
def trees() -> Mapping[str, ast.Module]:
    """Return the syntax tree of each file, by its path below the project."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


@cache
def all_functions() -> list[tuple[str, Function]]:
    """Return the functions and methods of all files, nested ones too."""
    return [
        (file, node)
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]


def length(function: Function) -> int:
    """Return the number of lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def private_functions() -> list[tuple[str, Function]]:
    """Return the functions and methods whose names start with one underscore."""
    return [
        (file, function)
        for file, function in all_functions()
        if function.name.startswith("_") and not function.name.startswith("__")
    ]


def used_once() -> list[tuple[str, Function]]:
    """Return the private functions whose names stand once in their file, besides the definition."""
    uses = {file: Counter(names(tree)) for file, tree in trees().items()}
    return [item for item in private_functions() if uses[item[0]][item[1].name] == 1]


def names(tree: ast.Module) -> Iterator[str]:
    """Yield every use of a name or an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def imports() -> Graph:
    """Return which modules of zfsilod/ each of them imports, at run time or for types."""
    modules = {module_of(file): tree for file, tree in trees().items()}
    return {
        module: {
            target
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zfsilod")
            for target in targets(node, modules)
            if target != module
        }
        for module, tree in modules.items()
    }


def targets(node: ast.ImportFrom, modules: Mapping[str, object]) -> Iterator[str]:
    """Yield the modules of `from a import b`: a.b where that is one, else a."""
    for alias in node.names:
        inner = f"{node.module}.{alias.name}"
        yield inner if inner in modules else str(node.module)


def module_of(file: str) -> str:
    """Return the dotted name of a file."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def cycles(graph: Graph) -> list[set[str]]:
    """Return the groups of modules that import each other in a circle, the largest first."""
    reached = {module: reach(graph, module) for module in graph}
    groups = {
        frozenset(other for other in graph if other in reached[module] and module in reached[other])
        for module in graph
        if module in reached[module]
    }
    return sorted((set(group) for group in groups), key=lambda group: (-len(group), min(group)))


def reach(graph: Graph, start: str) -> set[str]:
    """Return the modules that an import of `start` loads."""
    reached: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        module = ahead.pop()
        if module not in reached:
            reached.add(module)
            ahead += graph[module]
    return reached


def upward(graph: Graph) -> list[tuple[str, str]]:
    """Return the imports from a layer that comes after the importer's own."""
    return [
        (module, target)
        for module, imported in graph.items()
        for target in sorted(imported)
        if layer(target) > layer(module)
    ]


def layer(module: str) -> int:
    """Return the place of a module's layer; the package itself is below all."""
    _package, _dot, rest = module.partition(".")
    return LAYERS.index(rest.partition(".")[0]) if rest else -1


if __name__ == "__main__":
    for path, once in used_once():
        print(f"{path}:{once.lineno} {once.name}")

"""Rules of the source tree: imports between packages, unique names, and forbidden constructs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from csi.v1 import csi_pb2

from tests.bench.code import all_functions, cycles, length, upward
from tests.bench.code import imports as graph
from tests.crash.cases import requests
from tests.private_names import private_names
from zfsilod.ctl.command_table import COMMANDS
from zfsilod.wire.stub import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zfsilod"
FILES = sorted(PACKAGE.rglob("*.py"))
SYNCHRONOUS = ("engine/", "model/", "storage/", "host/")
HEAVY = ("asyncio", "grpc", "dbus_next", "msgspec", "cryptography", "logging", "traceback")
# Where an `except Exception` may stand: the guards of the front ends, and the worker.
BROAD = {
    "zfsilod/api/rpc/guard.py",
    "zfsilod/api/dbus/server.py",
    "zfsilod/engine/worker.py",
    "csi/zfsilo_csi/server.py",
}
# Called by Python, grpc, ssl or ElementTree; and members of the fake host, the gateway and the
# contract that only tests use.
USED = {"__init_subclass__", "__getattr__", "List", "num_tickets", "tail"} | {
    "light_fuse",
    "douse",
    "reboot",
    "buffered_bytes",
    "connections",
    "ACTION",
}
PLUGIN = sorted((ROOT / "csi/zfsilo_csi").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# The layers that import less than the order allows.
NARROW = {
    "model": (),
    "storage": ("model",),
    "gateway": ("model", "security", "config"),
    # host: tools and what they print, for setup and doctor; storage: the type of the local store.
    "ctl": ("model", "security", "wire", "config", "host", "storage"),
}
# The layers that may import a library.
ONLY = {
    "lmdb": ("storage",),
    "grpc": ("wire", "api"),
    "dbus_next": ("systemd", "api"),
    "subprocess": (),
    "cryptography": ("storage", "security", "ctl"),
    "asyncio": (
        "systemd",
        "security",
        "config",
        "gateway",
        "service",
        "monitoring",
        "wire",
        "api",
        "ctl",
        "daemon",
    ),
}
EMPTY_NAMES = ("each", "found", "given")
REQUESTS = {request.__name__ for request in requests()}


def place(path: Path) -> str:
    """Return a file's path below the project."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    """Return a file's module path below the package: host/zfs."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports at run time, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def using(module: str) -> set[str]:
    """Return the files that import a module."""
    return {
        name_of(path)
        for path in FILES
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    }


def test_a_file_imports_from_its_own_layer_and_those_before_it() -> None:
    """The layers in order: docs/architecture.md. Imports for types count too."""
    assert upward(graph()) == []


def test_no_import_cycle() -> None:
    assert cycles(graph()) == []


@pytest.mark.parametrize(("layer", "allowed"), NARROW.items())
def test_a_narrow_layer_imports_little(layer: str, allowed: tuple[str, ...]) -> None:
    targets = {
        target.split(".")[1]
        for module, imported in graph().items()
        if module.startswith(f"zfsilod.{layer}.")
        for target in imported
        if target.startswith("zfsilod.")
    }
    assert targets - {layer} <= set(allowed)


@pytest.mark.parametrize(("module", "layers"), ONLY.items())
def test_a_library_is_imported_by_few_layers(module: str, layers: tuple[str, ...]) -> None:
    assert {name.partition("/")[0] for name in using(module)} <= set(layers)


def test_requests_and_service_are_separate() -> None:
    """A new request is one class: the service names none, but for those that it submits itself."""
    for name in ("service", "executor", "context", "ports"):
        names = {one for one in imports(PACKAGE / f"service/{name}.py") if ".requests." in one}
        assert not {one for one in names if one.rpartition(".")[2] in REQUESTS}, name


def test_class_names_are_unique() -> None:
    classes = Counter(
        node.name
        for path in [*FILES, *PLUGIN, *TESTS]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in classes.items() if count > 1] == []


def test_a_variable_says_what_it_holds() -> None:
    empty = [
        f"{place(path)}:{node.lineno}"
        for path in [*FILES, *PLUGIN, *TESTS]
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Name) and node.id in EMPTY_NAMES and is_stored(node))
        or (isinstance(node, ast.arg) and node.arg in EMPTY_NAMES)
    ]
    assert empty == []


def is_stored(name: ast.Name) -> bool:
    """Tell whether a variable is set here."""
    return isinstance(name.ctx, ast.Store)


def test_only_tables_are_formatted_by_hand() -> None:
    assert {place(p) for p in [*FILES, *PLUGIN, *TESTS] if f"# fmt: {'skip'}" in p.read_text()} == {
        "zfsilod/ctl/command_table.py",
        "csi/zfsilo_csi/volume_capabilities.py",
    }


def test_no_long_function() -> None:
    long = {f"{file}:{node.name}" for file, node in all_functions() if length(node) > 60}
    assert long == set()


def test_tests_use_public_names() -> None:
    private = [
        f"{place(path)}:{line}: {text}" for path in TESTS for line, text in private_names(path)
    ]
    assert private == []


def test_only_run_and_the_local_launcher_start_processes() -> None:
    assert using("subprocess") == set()
    started = re.compile(
        r"create_subprocess|os\.(?:system|popen|exec|(posix_)?spawn|fork)|shell=True"
    )
    starting = {name_of(path) for path in FILES if started.search(path.read_text())}
    assert starting == {"systemd/launcher", "host/run"}


def test_what_the_worker_runs_is_synchronous() -> None:
    assert {name for name in using("asyncio") if name.startswith(SYNCHRONOUS)} == set()


def test_only_the_worker_and_the_daemon_reach_for_the_real_host() -> None:
    assert using("zfsilod.host.real") == {"engine/worker", "daemon"}


def test_the_worker_starts_light() -> None:
    code = "import sys, zfsilod.engine.worker, zfsilod.host.real; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(HEAVY) & set(done.stdout.split()) == set()


def test_the_plugin_knows_nothing_of_the_daemon() -> None:
    packages = {name.partition(".")[0] for path in PLUGIN for name in imports(path)}
    assert not {"zfsilod", "subprocess"} & packages


def test_no_broad_except() -> None:
    for path in [*FILES, *PLUGIN]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                broad = caught in ("", "Exception", "BaseException")
                reraised = any(isinstance(line, ast.Raise) for line in node.body)
                allowed = broad and place(path) in BROAD
                assert not broad or reraised or allowed, f"{place(path)}:{node.lineno}"


def test_no_forced_destroy_or_format() -> None:
    for path in (PACKAGE / "host").glob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.List | ast.Tuple | ast.Call):
                parts = node.args if isinstance(node, ast.Call) else node.elts
                words = {part.value for part in parts if isinstance(part, ast.Constant)}
                acts = any(str(word).startswith(("destroy", "mkfs", "rollback")) for word in words)
                assert not (acts and words & {"-r", "-R", "-f", "-F"}), f"{path}:{node.lineno}"


def test_nothing_is_dead() -> None:
    of_the_table = {command.function.partition(":")[2] for command in COMMANDS}
    of_csi = {
        method.name
        for service in csi_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    of_grpc = {method.name for service in SERVICES for method in service.methods}
    # Without the tests: what only a test uses is dead too.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vulture",
            "zfsilod",
            "csi/zfsilo_csi",
            "units",
            "docs",
            "--ignore-names",
            ",".join(of_the_table | of_csi | of_grpc | USED),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout + done.stderr == ""


def test_no_generated_stub_is_kept() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert not re.search(r"_pb2(_grpc)?\.pyi?$", listed, re.M)

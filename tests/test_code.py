"""Rules of the source tree: imports between packages, unique names, and forbidden constructs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from csi.v1 import csi_pb2

from zfsilod.ctl.command_table import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zfsilod"
FILES = sorted(PACKAGE.rglob("*.py"))
SYNCHRONOUS = ("engine/", "model/", "storage/", "host/")
HEAVY = ("asyncio", "grpc", "dbus_next", "msgspec", "cryptography", "logging", "traceback")
# Where an `except Exception` may stand: the guards of the front ends, and the worker.
BROAD = {
    "zfsilod/api/rpc/server.py",
    "zfsilod/api/dbus/server.py",
    "zfsilod/engine/worker.py",
    "csi/zfsilo_csi/server.py",
}
# Called by Python, grpc, ssl or ElementTree; and members of the fake host, the gateway and the
# contract that only tests use.
USED = {"__init_subclass__", "List", "num_tickets", "tail"} | {
    "light_fuse",
    "douse",
    "reboot",
    "buffered_bytes",
    "connections",
    "ACTION",
}
PLUGIN = sorted((ROOT / "csi/zfsilo_csi").rglob("*.py"))


def name_of(path: Path) -> str:
    """Return a file's module path below the package: host/zfs."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports at run time, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
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
        if any(each == module or each.startswith(f"{module}.") for each in imports(path))
    }


def test_model_and_errors_stand_alone() -> None:
    assert {
        each for each in imports(PACKAGE / "model/errors.py") if each.startswith("zfsilod")
    } == set()
    above = {
        module
        for name in ("record", "records", "errors", "sizes", "ulid")
        for module in imports(PACKAGE / f"model/{name}.py")
        if module.startswith("zfsilod.") and not module.startswith("zfsilod.model")
    }
    assert above <= {"zfsilod.host", "zfsilod.host.Host"}, "host for types only"


def test_only_the_front_ends_and_the_clients_know_grpc() -> None:
    assert all(name.startswith(("api/", "wire/", "ctl/")) for name in using("grpc"))


def test_only_run_and_the_local_launcher_start_processes() -> None:
    assert using("subprocess") == {"host/run"}
    started = re.compile(r"create_subprocess|os\.(?:system|popen|exec|spawn|fork)|shell=True")
    found = {name_of(path) for path in FILES if started.search(path.read_text())}
    assert found == {"systemd/launcher"}


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
    found = {each.partition(".")[0] for path in PLUGIN for each in imports(path)}
    assert "zfsilod" not in found
    assert "subprocess" not in found


@pytest.mark.parametrize("path", [*FILES, *PLUGIN], ids=lambda path: path.stem)
def test_no_broad_except(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            broad = caught in ("", "Exception", "BaseException")
            reraised = any(isinstance(each, ast.Raise) for each in node.body)
            place = path.relative_to(ROOT).as_posix()
            assert not broad or reraised or place in BROAD, f"{place}:{node.lineno}"


def test_no_forced_destroy_or_format() -> None:
    for path in (PACKAGE / "host").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List | ast.Tuple | ast.Call):
                parts = node.args if isinstance(node, ast.Call) else node.elts
                words = {each.value for each in parts if isinstance(each, ast.Constant)}
                acts = any(str(word).startswith(("destroy", "mkfs", "rollback")) for word in words)
                assert not (acts and words & {"-r", "-R", "-f", "-F"}), f"{path}:{node.lineno}"


def test_nothing_is_dead() -> None:
    of_the_table = {each.function.partition(":")[2] for each in COMMANDS}
    of_csi = {
        method.name
        for service in csi_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
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
            ",".join(of_the_table | of_csi | USED),
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

"""The Python environment for development and CI: all dependencies of zfsilo, not zfsilo."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from tests.setup import apt
from tests.setup.cache import digest, product
from tests.setup.command import run
from tests.setup.say import stage

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
# systemd-python comes as source only; so do dbus-python and PyGObject, which the tests need.
COMPILE = ("gcc", "libsystemd-dev", "pkg-config")
COMPILE_FOR_TESTS = (
    "libcairo2-dev",
    "libdbus-1-dev",
    "libgirepository1.0-dev",
    "libglib2.0-dev",
)
DBUSMOCK = "python-dbusmock"
# The templates of python-dbusmock import PyGObject without requiring it; 3.51 needs a newer library
# than Debian 12 has.
PYGOBJECT = "pygobject<3.51"


def requirements(project: Path) -> list[str]:
    """The requirements in pyproject.toml, with the extra `dev`."""
    metadata = tomllib.loads(project.read_text())["project"]
    wanted: list[str] = [*metadata["dependencies"], *metadata["optional-dependencies"]["dev"]]
    if any(line.startswith(DBUSMOCK) for line in wanted):
        wanted.append(PYGOBJECT)
    return wanted


def prepare(project: Path = PROJECT) -> Path:
    """The environment for this pyproject.toml and this Python, made if need be."""
    check_python()
    wanted = requirements(project)
    return product("venv", key(wanted), lambda draft: build(draft, wanted, COMPILE_FOR_TESTS))


def key(wanted: list[str]) -> str:
    """The key of the environment with these requirements."""
    return digest(wanted, sys.version)


def check_python() -> None:
    """Refuse a Python that is too old."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the set-up runs on whatever is there
        raise SystemExit("Python 3.11 or newer is needed")


def build(draft: Path, wanted: list[str], compile_more: tuple[str, ...] = ()) -> None:
    """Make the environment and install the requirements into it."""
    packages: tuple[str, ...] = (*COMPILE, *compile_more)
    if not has_ensurepip():
        packages = (*packages, "python3-venv")
    if running_debian_python():
        packages = (*packages, "python3-dev")
    apt.install(packages, reason="building Python packages")
    with stage(f"Python environment: {len(wanted)} requirements and their dependencies"):
        run([sys.executable, "-m", "venv", draft])
        run([draft / "bin/python", "-m", "pip", "install", "--quiet", *wanted])
    relocate(draft)


def has_ensurepip() -> bool:
    """Whether this Python can create environments; on Debian that needs a separate package."""
    try:
        import ensurepip  # noqa: F401 - tests whether it exists
    except ImportError:
        return False
    return True


def running_debian_python() -> bool:
    """Whether this is the distribution's Python, whose headers are in a separate package."""
    return Path(sys.base_prefix) == Path("/usr")


def relocate(draft: Path) -> None:
    """Replace the path of the build folder by that of the final one in scripts."""
    # The draft is named .FINAL.RANDOM, in the same folder.
    final = draft.with_name(draft.name[1:].rpartition(".")[0])
    old, new = str(draft).encode(), str(final).encode()
    for script in (draft / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        if not content.startswith(b"\x7fELF"):
            script.write_bytes(content.replace(old, new))

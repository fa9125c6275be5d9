"""The project as `make install` installs it, built once for each state of its sources."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.systemd.keeper import CHECKOUT
from tests.systemd.namespace import Bind, SystemdHost

PACKAGES = "usr/lib/zfsilo"  # Large, so it is bound and not copied.
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist", "tests")
# What decides which packages of other people are installed beside ours.
REQUIREMENTS = ("pyproject.toml", "Makefile", "*requirements*", "*constraints*", "*.lock")
HIDDEN_HOMES = ("/root", "/home", "/run/user")  # By ProtectHome=.
KEPT_TREES = 4
MAKE_TIMEOUT_S = 600


def install(sd: SystemdHost, checkout: Path = CHECKOUT) -> None:
    """Give the installed project to a machine that was not booted yet."""
    tree = installed_tree(checkout)
    sd.trees.append(tree / "files")
    sd.binds.append(Bind(tree / "packages", f"/{PACKAGES}"))


def installed_tree(checkout: Path = CHECKOUT) -> Path:
    """Run `make install`, or find what it made of the same sources before."""
    cache = _cache()
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as temporary:
        sources = Path(temporary, "sources")
        # A copy, so that a build leaves nothing in the checkout, and sees no later edit.
        shutil.copytree(checkout, sources, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        tree = cache / f"install-{_digest(sources, ('**/*',))}"
        if not tree.exists():
            packages = cache / f"packages-{_digest(sources, REQUIREMENTS)}"
            _publish(_build(sources, Path(temporary), packages), tree)
            if not packages.exists():
                _publish(_others(tree / "packages", Path(temporary, "others")), packages)
            packages.touch()
    tree.touch()
    _forget_old(cache)
    return tree


def _cache() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "zfsilo")
    cache = Path(os.environ.get("ZFSILO_CACHE") or default).resolve() / "systemd"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _digest(sources: Path, patterns: tuple[str, ...]) -> str:
    digest = hashlib.sha256(f"{sys.version} {sys.base_prefix} {platform.machine()}".encode())
    files = {path for pattern in patterns for path in sources.glob(pattern) if path.is_file()}
    for path in sorted(files):
        content = path.read_bytes()
        about = f"{path.relative_to(sources)} {path.stat().st_mode:o} {len(content)}\n"
        digest.update(about.encode() + content)
    return digest.hexdigest()[:20]


def _build(sources: Path, temporary: Path, packages: Path) -> Path:
    """Install into `files`, starting from what the last build had to fetch, and split it."""
    built = temporary / "built"
    files = built / "files"
    options = ""
    if packages.exists():
        _link_tree(packages, files / PACKAGES)
        options = "--no-deps --upgrade --no-build-isolation"  # hatchling is in our environment
    else:
        files.mkdir(parents=True)
    done = subprocess.run(
        [
            "make",
            "install",
            f"DESTDIR={files}",
            f"PYTHON={sys.executable}",
            f"PIP_ARGS={options}",
        ],
        cwd=sources,
        capture_output=True,
        text=True,
        timeout=MAKE_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise RuntimeError(f"make install failed\n{done.stdout}{done.stderr}")
    for launcher in _launchers(files):
        _use_reachable_python(launcher)
    (files / PACKAGES).rename(built / "packages")
    return built


def _others(packages: Path, target: Path) -> Path:
    """Link the packages of other people, which an edit of ours does not change."""
    target.mkdir()
    for entry in packages.iterdir():
        if entry.name.startswith("zfsilo"):
            continue
        if entry.is_dir():
            _link_tree(entry, target / entry.name)
        else:
            os.link(entry, target / entry.name)
    return target


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=os.link, symlinks=True)


def _publish(made: Path, place: Path) -> None:
    """Move to the cache, unless another process was first."""
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _launchers(files: Path) -> Iterator[Path]:
    """List what starts Python: everything but the content of the packages."""
    for path in files.rglob("*"):
        inside = path.relative_to(files)
        packaged = inside.is_relative_to(PACKAGES) and len(inside.parts) > 4
        if path.is_file() and not path.is_symlink() and not packaged:
            yield path


def _use_reachable_python(launcher: Path) -> None:
    """Replace the Python of the tests by one that has no packages and no hidden home."""
    content = launcher.read_bytes()
    for name in {sys.executable, os.path.realpath(sys.executable)}:
        content = content.replace(name.encode(), _reachable_python().encode())
    if content != launcher.read_bytes():
        mode = launcher.stat().st_mode
        launcher.unlink()  # It may be linked to the cache.
        launcher.write_bytes(content)
        launcher.chmod(mode)


def _reachable_python() -> str:
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if sys.base_prefix.startswith(HIDDEN_HOMES) and Path(system).exists():
        return system
    return os.path.realpath(sys.executable)


def _forget_old(cache: Path) -> None:
    for kind in ("install-*", "packages-*"):
        newest_first = sorted(cache.glob(kind), key=lambda tree: tree.stat().st_mtime, reverse=True)
        for tree in newest_first[KEPT_TREES:]:
            shutil.rmtree(tree, ignore_errors=True)

"""The project as installed by `make install`, built once for each state of the sources."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.systemd.namespace import Bind, SystemdHost
from tests.systemd.wrapper import CHECKOUT

PACKAGES = "usr/lib/zfsilo"  # Large: mounted, not copied.
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist", "tests")
# Files that determine which third-party packages are installed.
REQUIREMENTS = ("pyproject.toml", "Makefile", "*requirements*", "*constraints*", "*.lock")
HIDDEN_HOMES = ("/root", "/home", "/run/user")  # Hidden by ProtectHome=.
KEPT_TREES = 4
MAKE_TIMEOUT_S = 600


def install(sd: SystemdHost, checkout: Path = CHECKOUT) -> None:
    """Add the installed project to a machine that was not booted yet."""
    tree = installed_tree(checkout)
    sd.trees.append(tree / "files")
    sd.binds.append(Bind(tree / "packages", f"/{PACKAGES}"))


def installed_tree(checkout: Path = CHECKOUT) -> Path:
    """Return the result of `make install`, from the cache if the sources are unchanged."""
    cache = _cache()
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as temporary:
        sources = Path(temporary, "sources")
        # A copy: the build neither writes to the checkout nor reads later edits.
        shutil.copytree(checkout, sources, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        tree = cache / f"install-{_digest(sources, ('**/*',))}"
        if not tree.exists():
            packages = cache / f"packages-{_digest(sources, REQUIREMENTS)}"
            _publish(_build(sources, Path(temporary), packages), tree)
            if not packages.exists():
                _publish(_third_party(tree / "packages", Path(temporary, "others")), packages)
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
        header = f"{path.relative_to(sources)} {path.stat().st_mode:o} {len(content)}\n"
        digest.update(header.encode() + content)
    return digest.hexdigest()[:20]


def _build(sources: Path, temporary: Path, packages: Path) -> Path:
    """Install into `files`, reusing fetched packages, and move the packages to `packages`."""
    built = temporary / "built"
    files = built / "files"
    options = ""
    if packages.exists():
        _link_tree(packages, files / PACKAGES)
        options = "--no-deps --upgrade --no-build-isolation"  # hatchling is in the environment
    else:
        files.mkdir(parents=True)
    variables = [f"DESTDIR={files}", f"PYTHON={sys.executable}", f"PIP_ARGS={options}"]
    done = subprocess.run(
        ["make", "install", *variables],
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


def _third_party(packages: Path, target: Path) -> Path:
    """Link the third-party packages, which an edit of the project does not change."""
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


def _publish(built: Path, place: Path) -> None:
    """Move to the cache, unless another process has done so."""
    try:
        built.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _launchers(files: Path) -> Iterator[Path]:
    """List the files that may start Python: all outside the packages."""
    for path in files.rglob("*"):
        inside = path.relative_to(files)
        packaged = inside.is_relative_to(PACKAGES) and len(inside.parts) > 4
        if path.is_file() and not path.is_symlink() and not packaged:
            yield path


def _use_reachable_python(launcher: Path) -> None:
    """Replace the tests' Python by one without packages, outside the folders of ProtectHome=."""
    content = launcher.read_bytes()
    for name in {sys.executable, os.path.realpath(sys.executable)}:
        content = content.replace(name.encode(), _reachable_python().encode())
    if content != launcher.read_bytes():
        mode = launcher.stat().st_mode
        launcher.unlink()  # It may be a hard link into the cache.
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

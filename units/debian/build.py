"""Builds dist/zfsilo_VERSION_ARCH.deb and dist/cockpit-zfsilo_VERSION_all.deb: `make deb`.

Or build.py --version V --into DIR. The package of zfsilo serves all releases: it has the compiled
modules of its dependencies for the Python of each release, which selects them by file name
(`*.cpython-311-*.so`). This script runs in the environment of the tests and packs the versions that
are installed there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
# Debian 12, Ubuntu 24.04, Debian 13.
PYTHONS = ("3.11", "3.12", "3.13")
# Linked with libsystemd, and unchanged since 2023: the distribution's package is used.
FROM_DEBIAN = "systemd-python"
LIBRARY = "usr/lib/zfsilo"
DOCS = "usr/share/doc/zfsilo"
PAGE_DOCS = "usr/share/doc/cockpit-zfsilo"
PROGRAMS = ("zfsilo-worker", "zfsilo-gateway")
MAINTAINER = "zfsilo maintainers <maintainers@zfsilo.org>"
MODES = {"postinst": 0o755, "prerm": 0o755, "postrm": 0o755, "conffiles": 0o644}


def main() -> None:
    """Build the packages and print their paths."""
    sys.path.insert(0, str(PROJECT))
    from zfsilod import __version__

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default=__version__)
    parser.add_argument("--into", type=Path, default=PROJECT / "dist")
    args = parser.parse_args()
    args.into.mkdir(parents=True, exist_ok=True)
    for build in (build_zfsilo, build_page):
        with tempfile.TemporaryDirectory(prefix="zfsilo-deb-") as work:
            sys.stdout.write(f"{build(Path(work), args.version, args.into)}\n")


def build_zfsilo(work: Path, version: str, into: Path) -> Path:
    """Collect the files of zfsilo, write the control files, and build the package."""
    tree = work / "tree"
    tree.mkdir(mode=0o755)
    gather_libraries(tree / LIBRARY, work)
    make_install("install-files", tree)
    add_debian_files(tree, version)
    architecture = run(["dpkg", "--print-architecture"]).strip()
    add_control(tree, HERE / "control", version, architecture)
    for name, mode in MODES.items():
        shutil.copy(HERE / name, tree / "DEBIAN" / name)
        (tree / "DEBIAN" / name).chmod(mode)
    normalise(tree)
    return pack(tree, into / f"zfsilo_{version}_{architecture}.deb")


def build_page(work: Path, version: str, into: Path) -> Path:
    """Collect the files of the page of Cockpit, write the control files, and build the package."""
    tree = work / "tree"
    tree.mkdir(mode=0o755)
    make_install("install-cockpit", tree)
    (tree / PAGE_DOCS).mkdir(parents=True)
    shutil.copy(HERE / "copyright", tree / PAGE_DOCS)
    add_changes(tree / PAGE_DOCS, "cockpit-zfsilo", version)
    add_control(tree, HERE / "cockpit-control", version, "all")
    normalise(tree)
    return pack(tree, into / f"cockpit-zfsilo_{version}_all.deb")


def make_install(target: str, tree: Path) -> None:
    """Install files by the Makefile."""
    run(["make", "-s", "-C", PROJECT, target, f"DESTDIR={tree}", "PYTHON=/usr/bin/python3"])


def pack(tree: Path, package: Path) -> Path:
    """Build a package from its tree, and return its path."""
    run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, package])
    return package


def gather_libraries(library: Path, work: Path) -> None:
    """Install the wheels of zfsilo and its dependencies, for every Python, into one folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", work / "own", PROJECT])
    wheel = next((work / "own").glob("zfsilo-*.whl"))
    pinned = sorted(f"{name}=={importlib.metadata.version(name)}" for name in closure("zfsilo"))
    for python in PYTHONS:
        target = work / python
        selected = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
        selected += [f"--platform={tag}" for tag in platforms()]
        install = [*pip, "install", "--no-deps", "--no-compile", "--target", target]
        run([*install, *selected, wheel, *pinned])
        merge(target, library)
    for leftover in ("bin", "share"):
        shutil.rmtree(library / leftover, ignore_errors=True)


def platforms() -> list[str]:
    """Return the platform tags of wheels for the oldest release, which has glibc 2.36."""
    machine = platform.machine()
    return [f"manylinux_2_{minor}_{machine}" for minor in range(36, 16, -1)] + [
        f"manylinux2014_{machine}"
    ]


def closure(name: str) -> set[str]:
    """Return the names of all direct and indirect dependencies of an installed project."""
    from packaging.requirements import Requirement

    if name == "zfsilo":
        import tomllib

        metadata = tomllib.loads((PROJECT / "pyproject.toml").read_text())
        lines = metadata["project"]["dependencies"]
    else:
        lines = importlib.metadata.requires(name) or []
    names: set[str] = set()
    for line in lines:
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in (FROM_DEBIAN, *names):
            names |= {requirement.name} | closure(requirement.name)
    return names


def merge(source: Path, target: Path) -> None:
    """Move a tree into another; a file that exists in both must have the same content."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            path.rename(place)
        elif path.read_bytes() != place.read_bytes() and ".dist-info" not in str(place):
            raise SystemExit(f"{place.relative_to(target)} differs between the Python versions")


def add_debian_files(tree: Path, version: str) -> None:
    """Add the files of a Debian package that `make install-files` does not install."""
    for name, place in {
        "copyright": DOCS,
        "zfsilo.rtupdate": "usr/share/python3/runtime.d",
        "lintian-overrides": "usr/share/lintian/overrides",
    }.items():
        (tree / place).mkdir(parents=True, exist_ok=True)
        target = tree / place / ("zfsilo" if name == "lintian-overrides" else name)
        shutil.copy(HERE / name, target)
        target.chmod(0o755 if name.endswith("rtupdate") else 0o644)
    add_changes(tree / DOCS, "zfsilo", version)
    for page in (tree / "usr/share/man").rglob("*.[158]"):
        compress(page)
    for shared in (tree / LIBRARY).rglob("*.so*"):
        run(["strip", "--strip-unneeded", shared])


def add_changes(docs: Path, package: str, version: str) -> None:
    """Add CHANGELOG.md, and a changelog in Debian's format that refers to it."""
    changes = PROJECT / "CHANGELOG.md"
    shutil.copy(changes, docs)
    compress(docs / changes.name)
    date = formatdate(changes.stat().st_mtime)
    (docs / "changelog").write_text(
        f"{package} ({version}) unstable; urgency=medium\n\n  * See {changes.name}.gz.\n\n"
        f" -- {MAINTAINER}  {date}\n"
    )
    compress(docs / "changelog")


def compress(path: Path) -> None:
    """Compress a file reproducibly: without name and time stamp."""
    run(["gzip", "-9", "--no-name", "--force", path])


def add_control(tree: Path, template: Path, version: str, architecture: str) -> None:
    """Write DEBIAN/control and the checksums of all files."""
    control = tree / "DEBIAN"
    control.mkdir()
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    text = template.read_text()
    for name, value in {
        "MAINTAINER": MAINTAINER,
        "VERSION": version,
        "SIZE": str(sum(path.stat().st_size for path in files) // 1024),
        "ARCHITECTURE": architecture,
    }.items():
        text = text.replace(f"@{name}@", value)
    (control / "control").write_text(text)
    sums = run(["md5sum", *(path.relative_to(tree) for path in files)], cwd=tree)
    (control / "md5sums").write_text(sums)


def normalise(tree: Path) -> None:
    """Set the modes of folders and files independently of the umask."""
    for path in tree.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
        elif tree / LIBRARY in path.parents and path.name not in PROGRAMS:
            path.chmod(0o644)


def run(argv: list[str | Path], cwd: Path | None = None) -> str:
    """Run a tool and return its standard output."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words[:8])} ...: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()

"""Builds dist/zfsilo_VERSION_ARCH.deb: `make deb`, or build.py --version V --into DIR.

One package serves all releases: it has the compiled modules of its dependencies for the Python of
each release, which selects them by file name (`*.cpython-311-*.so`). It runs in the environment of
the tests and packs the versions that are installed there.
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
PROGRAMS = ("zfsilo-worker", "zfsilo-gateway")
MAINTAINER = "zfsilo maintainers <maintainers@zfsilo.org>"
MODES = {"postinst": 0o755, "prerm": 0o755, "postrm": 0o755, "conffiles": 0o644}


def main() -> None:
    """Build the package and print its path."""
    sys.path.insert(0, str(PROJECT))
    from zfsilod import __version__

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default=__version__)
    parser.add_argument("--into", type=Path, default=PROJECT / "dist")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zfsilo-deb-") as work:
        package = build(Path(work), args.version, args.into)
    sys.stdout.write(f"{package}\n")


def build(work: Path, version: str, into: Path) -> Path:
    """Collect the files, write the control files, and build the package."""
    tree = work / "tree"
    tree.mkdir(mode=0o755)
    gather_libraries(tree / LIBRARY, work)
    run(
        ["make", "-s", "-C", PROJECT, "install-files", f"DESTDIR={tree}", "PYTHON=/usr/bin/python3"]
    )
    add_debian_files(tree, version)
    add_control(tree, version)
    normalise(tree)
    architecture = run(["dpkg", "--print-architecture"]).strip()
    into.mkdir(parents=True, exist_ok=True)
    package = into / f"zfsilo_{version}_{architecture}.deb"
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
    add_changes(tree / DOCS, version)
    for page in (tree / "usr/share/man").rglob("*.[158]"):
        compress(page)
    for shared in (tree / LIBRARY).rglob("*.so*"):
        run(["strip", "--strip-unneeded", shared])


def add_changes(docs: Path, version: str) -> None:
    """Add CHANGELOG.md, and a changelog in Debian's format that refers to it."""
    changes = PROJECT / "CHANGELOG.md"
    shutil.copy(changes, docs)
    compress(docs / changes.name)
    date = formatdate(changes.stat().st_mtime)
    (docs / "changelog").write_text(
        f"zfsilo ({version}) unstable; urgency=medium\n\n  * See {changes.name}.gz.\n\n"
        f" -- {MAINTAINER}  {date}\n"
    )
    compress(docs / "changelog")


def compress(path: Path) -> None:
    """Compress a file reproducibly: without name and time stamp."""
    run(["gzip", "-9", "--no-name", "--force", path])


def add_control(tree: Path, version: str) -> None:
    """Write DEBIAN/: control, maintainer scripts, and the checksums of all files."""
    control = tree / "DEBIAN"
    control.mkdir()
    size = sum(p.stat().st_size for p in tree.rglob("*") if p.is_file()) // 1024
    text = (HERE / "control").read_text()
    text = (
        text.replace("@MAINTAINER@", MAINTAINER)
        .replace("@VERSION@", version)
        .replace("@SIZE@", str(size))
    )
    text = text.replace("@ARCHITECTURE@", run(["dpkg", "--print-architecture"]).strip())
    (control / "control").write_text(text)
    for name, mode in MODES.items():
        shutil.copy(HERE / name, control / name)
        (control / name).chmod(mode)
    files = sorted(p for p in tree.rglob("*") if p.is_file() and control not in p.parents)
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

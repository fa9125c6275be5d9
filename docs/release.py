"""Release a version: `make release VERSION=x.y.z`.

Writes the version into every file that has it, gives the unreleased changes their section in
CHANGELOG.md, commits, and tags the commit vX.Y.Z. Only the standard library is needed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)")
UNRELEASED = "## [Unreleased]\n"
TAG = "v{}"
# Each place, as a pattern of the text on both sides of the version. build.py of units/debian and
# pyproject.toml read the first one.
PLACES = (
    ("zfsilod/__init__.py", r'(__version__ = ")([^"]+)(")'),
    ("csi/zfsilo_csi/__init__.py", r'(__version__ = ")([^"]+)(")'),
    ("csi/Containerfile", r"(zfsilo-csi:)(\S+)( )"),
    ("csi/deploy/helm/zfsilo-csi/Chart.yaml", r"(?m)^((?:appVersion|version): )(\S+)()$"),
    ("csi/deploy/manifests/zfsilo-csi.yaml", r'(app.kubernetes.io/version: ")([^"]+)(")'),
    ("csi/deploy/manifests/zfsilo-csi.yaml", r"(/zfsilo-csi:)(\S+)()"),
    ("README.md", r"(zfsilo_)([\d.]+)(_amd64.deb)"),
    ("README.md", r"(\(zfsilod )([^)]+)(\))"),
    ("README.md", r"(?m)^(Version )([\d.]+\d)(\.)"),
)


def main() -> None:
    """Release the version of the command line."""
    (version,) = sys.argv[1:] or ("",)
    check(version)
    for name, pattern in PLACES:
        path = PROJECT / name
        path.write_text(re.sub(pattern, rf"\g<1>{version}\g<3>", path.read_text()))
    changelog = PROJECT / "CHANGELOG.md"
    changelog.write_text(with_section(changelog.read_text(), version, time.strftime("%Y-%m-%d")))
    git("commit", "--quiet", "--all", "--message", f"release: {version}")
    git("tag", "--annotate", "--message", f"zfsilo {version}", TAG.format(version))
    sys.stdout.write(f"committed and tagged: git push origin HEAD {TAG.format(version)}\n")


def check(version: str) -> None:
    """Refuse what cannot be released."""
    if not VERSION.fullmatch(version):
        sys.exit(f"invalid version {version!r}: expected VERSION=x.y.z")
    if git("status", "--porcelain", "--untracked-files=no"):
        sys.exit("the working tree has changes: commit or stash them first")
    if git("tag", "--list", TAG.format(version)):
        sys.exit(f"the tag {TAG.format(version)} exists: choose a later version")
    if not unreleased((PROJECT / "CHANGELOG.md").read_text()).strip():
        sys.exit("CHANGELOG.md has no unreleased changes: describe them first")


def unreleased(changelog: str) -> str:
    """Return the text of the section of unreleased changes."""
    return re.split(r"(?m)^## ", changelog.partition(UNRELEASED)[2])[0]


def with_section(changelog: str, version: str, date: str) -> str:
    """Return the changelog with its unreleased changes in a section of a version."""
    return changelog.replace(UNRELEASED, f"{UNRELEASED}\n## [{version}] - {date}\n", 1)


def git(*arguments: str) -> str:
    """Run git in the project, and return its output."""
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()

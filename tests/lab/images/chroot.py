"""Root file systems of other Debian releases: creation, and commands inside them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.images.recipe import DPKG_OPTIONS
from tests.setup.apt import machine_release
from tests.setup.command import CommandError, run
from tests.setup.sources import machine_sources, render, sources_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The mounts vanish with the namespace, however the command ends.
ENTER = (
    'mount -t proc proc "$0/proc"; mkdir -p "$0/build"; mount --bind "$1" "$0/build"; '
    'root=$0; shift; exec chroot "$root" "$@"'
)
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/build",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}


def guest_sources(release: str) -> str:
    """The sources of the guest's release, on the servers that this machine uses."""
    return render(sources_for(release, machine_sources(), machine_release()))


def debootstrap(root: Path, release: str, packages: Sequence[str]) -> None:
    """Install a release with these packages and their dependencies into a folder."""
    options = [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    options += ['--aptopt=APT::Install-Recommends "false"', '--aptopt=APT::Sandbox::User "root"']
    options += ["--mode=root", "--variant=minbase", "--skip=cleanup/apt/lists"]
    include = f"--include={','.join(packages)}"
    run(["mmdebstrap", *options, include, release, root, "-"], stdin=guest_sources(release))
    resolver = root / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    shutil.copy("/etc/resolv.conf", resolver)


def inside(
    root: Path, work: Path, argv: Sequence[str], env: Mapping[str, str] | None = None
) -> str:
    """Run a command with `root` as its root and the folder `work` as its /build."""
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", ENTER]
    return run([*enter, root, work, *argv], env={**ENVIRONMENT, **(env or {})})


def network_environment() -> dict[str, str]:
    """The environment for network access: proxies, certificates and the settings of pip."""
    wanted = ("PIP_", "SSL_CERT_", "REQUESTS_CA_", "HTTP_", "HTTPS_", "NO_PROXY")
    own = {name: value for name, value in os.environ.items() if name.upper().startswith(wanted)}
    return {**pip_settings(), **own}


def pip_settings() -> dict[str, str]:
    """The settings in pip's configuration files, as the equivalent environment variables."""
    try:
        listing = run([sys.executable, "-m", "pip", "config", "list"])
    except CommandError:
        return {}
    settings = re.findall(r"^(?:global|wheel|install)\.([a-z-]+)='(.*)'$", listing, re.MULTILINE)
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in settings}


def copy_certificates(root: Path, env: Mapping[str, str]) -> None:
    """Copy the certificate files that these variables name to the same place in a root."""
    for value in set(env.values()):
        path = Path(value)
        if path.is_absolute() and path.is_file():
            target = root / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

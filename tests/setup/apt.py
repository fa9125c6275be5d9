"""A private apt with its own sources, lists and archives; the machine's settings are unchanged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup.cache import digest, locked, product
from tests.setup.command import CommandError, run
from tests.setup.say import say, stage
from tests.setup.sources import machine_sources, render, sources_for, with_backports

if TYPE_CHECKING:
    from collections.abc import Sequence

BACKPORTS_RELEASE = "bookworm"


def machine_release() -> str:
    """The code name of this machine's Debian release."""
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise RuntimeError("/etc/os-release has no VERSION_CODENAME")


def machine_sources_text() -> str:
    """The sources for packages of this machine, with backports on the release that needs them."""
    release = machine_release()
    sources = sources_for(release, machine_sources(), release)
    if release == BACKPORTS_RELEASE:
        sources = with_backports(sources, release)
    return render(sources)


def options(folder: Path) -> list[str]:
    """The options that make apt work in a folder; dpkg's status file stays the machine's."""
    settings = {
        "Dir::Etc::SourceList": folder / "debian.sources",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::extended_states": folder / "extended_states",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": folder / "cache",
        "Dir::Cache::Archives": folder / "archives",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def prepare(folder: Path, sources: str) -> None:
    """Write the private configuration and fetch the package lists."""
    for name in ("lists/partial", "archives/partial", "cache"):
        (folder / name).mkdir(parents=True)
    (folder / "debian.sources").write_text(sources)
    run(["apt-get", *options(folder), "-q", "update"])


def private_apt() -> Path:
    """The folder of the private apt for this machine's packages."""
    sources = machine_sources_text()

    def build(folder: Path) -> None:
        with stage("fetching package lists into a private apt folder"):
            prepare(folder, sources)

    return product("apt", digest(sources), build)


def installed_packages() -> frozenset[str]:
    """The names of all installed packages."""
    names = set()
    name = ""
    for line in Path("/var/lib/dpkg/status").read_text(errors="replace").splitlines():
        if line.startswith("Package: "):
            name = line.removeprefix("Package: ")
        elif line == "Status: install ok installed":
            names.add(name)
    return frozenset(names)


def install(packages: Sequence[str], *, reason: str, suite: str | None = None) -> None:
    """Print which of the packages are missing, then install them."""
    missing = sorted(set(packages) - installed_packages())
    if not missing:
        return
    say(f"missing for {reason}: {' '.join(missing)}")
    if os.geteuid() != 0:
        raise PermissionError(f"run as root to install the missing packages: {' '.join(missing)}")
    folder = private_apt()
    release = [] if suite is None else ["-t", suite]
    with locked("apt-install"), stage(f"installing {len(missing)} packages with apt-get"):
        apt_get = ["apt-get", *options(folder), "-q", "-y"]
        command = [*apt_get, *release, "install", *missing]
        try:
            run(command, env=quiet_environment())
        except CommandError:
            # The lists may be older than the archive, which drops superseded packages.
            say("installation failed; retrying with fresh package lists")
            run([*apt_get, "update"])
            run(command, env=quiet_environment())


def download(package: str, folder: Path) -> Path:
    """The file of a package, fetched into a folder without its dependencies."""
    apt_get = ["apt-get", *options(private_apt()), "-q"]
    command = [*apt_get, "download", package]
    try:
        run(command, cwd=folder)
    except CommandError:
        run([*apt_get, "update"])  # superseded packages are not in the archive any more
        run(command, cwd=folder)
    (file,) = folder.glob(f"{package}_*.deb")
    return file


def quiet_environment() -> dict[str, str]:
    """The environment for package scripts that must not ask questions."""
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8"}

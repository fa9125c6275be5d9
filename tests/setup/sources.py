"""Reads the Debian sources of this machine and derives those of a private apt from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COMPONENTS = ("main", "contrib")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class SourcesError(Exception):
    """The machine names no Debian archive that the set-up could use."""


@dataclass(frozen=True)
class Source:
    """One archive, its suites and the keyring that signs it."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def parse_deb822(text: str) -> Iterator[Source]:
    """The enabled binary archives of a .sources file."""
    # Comments may stand inside a stanza, so they go before the stanzas are told apart.
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", plain):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')}\n{line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", "").split():
            yield Source(
                uri,
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                # A key written into the stanza itself has line breaks: then the default keyring.
                "" if "\n" in fields.get("signed-by", "") else fields.get("signed-by", ""),
            )


ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>.*)"
)


def parse_one_line(text: str) -> Iterator[Source]:
    """The binary archives of a sources.list file."""
    for line in text.splitlines():
        found = ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if not found:
            continue
        signed_by = re.search(r"signed-by=(\S+)", found["options"] or "")
        yield Source(
            found["uri"],
            (found["suite"],),
            tuple(found["rest"].split()),
            signed_by[1] if signed_by else "",
        )


def machine_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """Every binary archive that this machine is set up to use, Debian's or not."""
    found: list[Source] = []
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            found += parse_one_line(path.read_text())
        elif path.suffix == ".sources":
            found += parse_deb822(path.read_text())
    return found


def is_debian(source: Source, release: str) -> bool:
    """Whether this is Debian's own archive (or a mirror or dated copy of it) for a release."""
    suites = {release, f"{release}-updates", f"{release}-security"}
    return (
        bool(suites & set(source.suites))
        and "main" in source.components
        and bool({"debian", "debian-security"} & set(source.uri.split("/")))
    )


def is_security(source: Source) -> bool:
    """Whether the archive is the one for security updates."""
    return "debian-security" in source.uri.split("/")


def sources_for(release: str, machine: Iterable[Source], machine_release: str) -> list[Source]:
    """The archives of a release, on the same servers that this machine uses for its own."""
    own = [source for source in machine if is_debian(source, machine_release)]
    if not own:
        raise SourcesError(f"no Debian archive for {machine_release} below /etc/apt")
    derived = [
        replace(source, components=COMPONENTS, suites=(), signed_by=source.signed_by or KEYRING)
        for source in own
    ]
    found = []
    for source in dict.fromkeys(derived):
        suites = (
            (f"{release}-security",) if is_security(source) else (release, f"{release}-updates")
        )
        found.append(replace(source, suites=suites))
    return found


def with_backports(sources: Iterable[Source], release: str) -> list[Source]:
    """The same archives with the backports suite of the release."""
    return [
        source
        if is_security(source)
        else replace(source, suites=(*source.suites, f"{release}-backports"))
        for source in sources
    ]


def render(sources: Iterable[Source]) -> str:
    """The text of a .sources file."""
    return "\n".join(
        f"Types: deb\nURIs: {source.uri}\nSuites: {' '.join(source.suites)}\n"
        f"Components: {' '.join(source.components)}\nSigned-By: {source.signed_by}\n"
        for source in sources
    )

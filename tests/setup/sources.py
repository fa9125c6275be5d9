"""Reads this machine's Debian sources and derives those of the private apt."""

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
    """The machine's sources have no usable Debian archive."""


@dataclass(frozen=True)
class AptSource:
    """One archive, its suites and the keyring that signs it."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def parse_deb822(text: str) -> Iterator[AptSource]:
    """The enabled binary archives of a .sources file."""
    # Comments may be inside a stanza, so they are removed before the text is split.
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
            yield AptSource(
                uri,
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                # An inline key has line breaks; the default keyring is used instead.
                "" if "\n" in fields.get("signed-by", "") else fields.get("signed-by", ""),
            )


ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>.*)"
)


def parse_one_line(text: str) -> Iterator[AptSource]:
    """The binary archives of a sources.list file."""
    for line in text.splitlines():
        match = ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if not match:
            continue
        signed_by = re.search(r"signed-by=(\S+)", match["options"] or "")
        yield AptSource(
            match["uri"],
            (match["suite"],),
            tuple(match["rest"].split()),
            signed_by[1] if signed_by else "",
        )


def machine_sources(etc_apt: Path = Path("/etc/apt")) -> list[AptSource]:
    """All binary archives in this machine's sources, Debian's and others."""
    sources: list[AptSource] = []
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            sources += parse_one_line(path.read_text())
        elif path.suffix == ".sources":
            sources += parse_deb822(path.read_text())
    return sources


def is_debian(source: AptSource, release: str) -> bool:
    """Whether this is a Debian archive, a mirror or a snapshot of it, for a release."""
    suites = {release, f"{release}-updates", f"{release}-security"}
    return (
        bool(suites & set(source.suites))
        and "main" in source.components
        and bool({"debian", "debian-security"} & set(source.uri.split("/")))
    )


def is_security(source: AptSource) -> bool:
    """Whether the archive is the one for security updates."""
    return "debian-security" in source.uri.split("/")


def sources_for(
    release: str, machine: Iterable[AptSource], machine_release: str
) -> list[AptSource]:
    """The archives of a release, on the servers that this machine uses for its own release."""
    own = [source for source in machine if is_debian(source, machine_release)]
    if not own:
        raise SourcesError(f"/etc/apt: no Debian archive for {machine_release}")
    derived = [
        replace(source, components=COMPONENTS, suites=(), signed_by=source.signed_by or KEYRING)
        for source in own
    ]
    sources = []
    for source in dict.fromkeys(derived):
        suites = (
            (f"{release}-security",) if is_security(source) else (release, f"{release}-updates")
        )
        sources.append(replace(source, suites=suites))
    return sources


def with_backports(sources: Iterable[AptSource], release: str) -> list[AptSource]:
    """The same archives with the backports suite of the release."""
    return [
        source
        if is_security(source)
        else replace(source, suites=(*source.suites, f"{release}-backports"))
        for source in sources
    ]


def render(sources: Iterable[AptSource]) -> str:
    """The text of a .sources file."""
    return "\n".join(
        f"Types: deb\nURIs: {source.uri}\nSuites: {' '.join(source.suites)}\n"
        f"Components: {' '.join(source.components)}\nSigned-By: {source.signed_by}\n"
        for source in sources
    )

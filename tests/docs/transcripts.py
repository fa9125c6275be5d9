"""Transcripts of the documentation: `$ command` and its output, in the shell of `make try`.

Run as a program it writes today's output into the pages: `make transcripts`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.docs.blocks import ALL, ROOT, TRANSCRIPT, Block

TIMEOUT_S = 100
END = "end of a command"
# What differs from run to run.
VARIABLE = (
    (re.compile(r"\b\d+[smhd]\b"), "AGE"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "UID"),
    (re.compile(r"\b[0-9a-hjkmnp-tv-z]{26}\b"), "ULID"),
    (re.compile(r"\bsimulated\.[0-9a-f]{12}\b"), "INITIATOR"),
)


def fresh_environment() -> dict[str, str]:
    """Return the environment of a new login: a search path without this Python's, and a home."""
    own = str(Path(sys.prefix) / "bin")
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != own)
    kept = ("HOME", "LANG", "XDG_CACHE_HOME", "ZFSILO_CACHE")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"PATH": path}


def in_a_clone(script: str) -> subprocess.CompletedProcess[str]:
    """Type lines into a shell in a clone of the repository, with nothing set up."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc"],
        input=script,
        cwd=ROOT,
        env=fresh_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def commands(block: Block) -> list[str]:
    """Return the commands of a transcript."""
    lines = block.text.splitlines()
    return [line.removeprefix(TRANSCRIPT) for line in lines if line.startswith(TRANSCRIPT)]


def transcript(lines: list[str]) -> str:
    """Run commands in the shell of `make try`, and return them with their output."""
    script = "".join(f"{line} 2>&1 || true\necho '{END}'\n" for line in lines)
    done = in_a_clone(f"make try\n{script}")
    assert done.returncode == 0, done.stderr
    *outputs, _rest = done.stdout.split(f"{END}\n")
    shown = zip(lines, outputs, strict=True)
    return "".join(f"{TRANSCRIPT}{line}\n{output}" for line, output in shown).rstrip()


def comparable(text: str) -> str:
    """Return a text without what differs from run to run."""
    for pattern, name in VARIABLE:
        text = pattern.sub(name, text)
    return text


def main() -> None:
    """Replace each transcript whose output has changed."""
    for block in ALL:
        if block.is_transcript:
            text = transcript(commands(block))
            if comparable(text) != comparable(block.text):
                page = block.page.read_text()
                old, new = (textwrap.indent(t, "    ") for t in (block.text, text))
                assert old in page
                block.page.write_text(page.replace(old, new))


if __name__ == "__main__":
    main()

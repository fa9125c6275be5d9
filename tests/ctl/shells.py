"""bash, zsh and fish, each as it completes a command line of zfsiloctl."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import time
from typing import TYPE_CHECKING

from zfsilod.ctl.commands import completion

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 30
# Prints each match between two NUL bytes, then ends: after the example of zsh-capture-completion.
ZSHRC = """\
PROMPT=
autoload -U compinit
compinit -C -u -d {dump}
. {script}
bindkey '^I' complete-word
zstyle ':completion:*' insert-tab false
mark() {{ print -n '\\0' }}
compprefuncs=(mark)
comppostfuncs=(mark exit)
compadd() {{
  if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)\\ * ]]; then
    builtin compadd "$@"
    return $?
  fi
  local -a hits
  builtin compadd -A hits "$@"
  (( $#hits )) && print -rl -- $hits
}}
print -n READY
"""


def complete(shell: str, folder: Path, *words: str) -> list[str]:
    """Return what a shell offers for the last of these words, with zfsiloctl in a folder."""
    script = folder / f"completion.{shell}"
    script.write_text(completion.SHELLS[shell]())
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
    return OFFERS[shell](script, environment, ("zfsiloctl", *words))


def bash(script: Path, environment: dict[str, str], words: tuple[str, ...]) -> list[str]:
    """Call the function that bash calls on TAB."""
    text = (
        f". {script}\nset -u\nCOMP_WORDS=({shlex.join(words)})\nCOMP_CWORD={len(words) - 1}\n"
        "_zfsiloctl\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    return run(["bash", "-c", text], script.parent, environment).split()


def fish(script: Path, environment: dict[str, str], words: tuple[str, ...]) -> list[str]:
    """Ask fish for its completions, each with a description behind a tab."""
    text = f". {script}; complete -C {shlex.quote(' '.join(words))}"
    output = run(["fish", "--no-config", "-c", text], script.parent, environment)
    return [line.partition("\t")[0] for line in output.splitlines()]


def run(argv: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a shell that must not complain, and return its output."""
    done = subprocess.run(
        argv,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    assert done.stderr == ""
    return done.stdout


def zsh(script: Path, environment: dict[str, str], words: tuple[str, ...]) -> list[str]:
    """Type the words and TAB into an interactive zsh, and return the matches that it adds."""
    dump = script.parents[1] / "zcompdump"  # of all tests: to make it takes a second
    (script.parent / ".zshrc").write_text(ZSHRC.format(script=script, dump=dump))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["zsh", "-d", "-i"],
        cwd=script.parent,
        env=environment | {"TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(ours, b"READY")
        os.write(ours, " ".join(words).encode() + b"\t")
        read_until(ours, b"\0")
        return read_until(ours, b"\0").decode().split()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, end: bytes) -> bytes:
    """Return what a terminal prints before an end."""
    until, data = time.monotonic() + DEADLINE_S, b""
    while not data.endswith(end):
        assert select.select([terminal], [], [], until - time.monotonic())[0], data
        data += os.read(terminal, 1)
    return data.removesuffix(end)


OFFERS = {"bash": bash, "zsh": zsh, "fish": fish}

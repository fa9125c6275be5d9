"""A simulated daemon, and a shell in which zfsiloctl talks to it: `make try`.

Nothing outside a temporary folder is changed; the folder goes when the shell ends.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[1]
MODULES = os.pathsep.join(str(PROJECT / name) for name in (".", "proto"))
DEADLINE_S = 60
CONFIG = '[daemon]\nhost_id = "demo"\n'
WELCOME = """\
zfsilod runs over a simulated host named demo, server and client in one. Try:

    zfsiloctl status
    zfsiloctl volume create data 10G
    zfsiloctl volume publish data demo
    zfsiloctl volume connect data
    zfsiloctl volume stage data
    zfsiloctl volume mount data /srv/data
    zfsiloctl volume show data

`exit` stops the daemon and removes the simulated host.
"""
RCFILE = """\
[ ! -r ~/.bashrc ] || . ~/.bashrc
eval "$(zfsiloctl completion bash)"
PS1='zfsilo> '
"""


def main() -> int:
    """Run the daemon, open the shell, and return the exit status of a script."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="zfsilo-try-") as name:
        folder = Path(name)
        (folder / "etc").mkdir()
        (folder / "etc/zfsilod.toml").write_text(CONFIG)
        with simulated_daemon(folder):
            status = subprocess.run(shell(folder), env=environment(folder), check=False).returncode
            return 0 if sys.stdin.isatty() else status


@contextmanager
def simulated_daemon(folder: Path) -> Iterator[None]:
    """Run zfsilod over a simulated host in a folder."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
        (folder / "log").open("w") as log,
    ):
        ready.bind(str(folder / "notify"))
        daemon = subprocess.Popen(
            [sys.executable, "-m", "zfsilod.daemon", "--simulate", folder],
            env=os.environ | {"PYTHONPATH": MODULES, "NOTIFY_SOCKET": str(folder / "notify")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the shell is not for the daemon
        )
        try:
            ends = os.pidfd_open(daemon.pid)
            if select.select([ready.fileno(), ends], [], [], DEADLINE_S)[0] != [ready.fileno()]:
                raise SystemExit(f"zfsilod does not start:\n{(folder / 'log').read_text()}")
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(DEADLINE_S)
            finally:
                daemon.kill()


def shell(folder: Path) -> list[str]:
    """Return the shell: bash for a terminal, else sh that stops at the first failure."""
    if not sys.stdin.isatty():
        return ["sh", "-e"]
    print(WELCOME)
    (folder / "bashrc").write_text(RCFILE)
    return ["bash", "--rcfile", str(folder / "bashrc"), "-i"]


def environment(folder: Path) -> dict[str, str]:
    """Return the caller's environment with zfsiloctl in front of its search path."""
    commands = folder / "bin"
    commands.mkdir()
    command = shlex.join([sys.executable, "-m", "zfsilod.ctl"])
    script = commands / "zfsiloctl"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(MODULES)} exec {command} "$@"\n')
    script.chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return plain | {"PATH": path, "ZFSILO_SIMULATE": str(folder)}


if __name__ == "__main__":
    sys.exit(main())

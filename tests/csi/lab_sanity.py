"""csi-sanity in the lab: real ZFS and transports, the controller on give and the node on take.

python -m tests.csi.lab_sanity [--transport nvme] [mount|block]
"""

from __future__ import annotations

import argparse
import socketserver
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.csi.lab_plugin import KUBELET, PORT, install
from tests.csi.suite.sanity import EXPECTED, SanityResult, SanityRun, sanity
from tests.lab.pair import Pair, restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

PATH_SCRIPTS = {
    "create": 'mkdir -p "$1" && printf "%s\\n" "$1"',
    "remove": 'rmdir "$1"',
    "check": 'if [ -d "$1" ]; then echo directory; elif [ -f "$1" ]; then echo file; '
    'elif [ -e "$1" ]; then echo other; else echo not_found; fi',
}
# A path command of the suite: sends command and path to path_commands(), prints the reply.
PATH_CLIENT = """\
#!{python}
import socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({socket!r})
    link.sendall(("{command} " + sys.argv[1] + chr(10)).encode())
    code, _space, text = link.makefile().read().partition(" ")
print(text, end="")
sys.exit(int(code))
"""


@contextmanager
def path_commands(machine: Machine, directory: Path) -> Iterator[dict[str, Path]]:
    """Serve the suite's path commands: only this process may talk to the machine's agent."""
    socket = directory / "paths.sock"

    class PathHandler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            command, _space, path = self.rfile.readline().decode().rstrip("\n").partition(" ")
            done = machine.run("sh", "-c", PATH_SCRIPTS[command], command, path, check=False)
            self.wfile.write(f"{done.rc} {done.stdout}".encode())

    with socketserver.ThreadingUnixStreamServer(str(socket), PathHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            programs = {command: directory / command for command in PATH_SCRIPTS}
            for command, program in programs.items():
                program.write_text(
                    PATH_CLIENT.format(python=sys.executable, socket=str(socket), command=command)
                )
                program.chmod(0o755)
            yield programs
        finally:
            server.shutdown()
            thread.join()
            socket.unlink()  # the next access type binds it again


def conform(
    pair: Pair, access_type: str, directory: Path, transport: str = "iscsi"
) -> SanityResult:
    """Run the suite for one access type."""
    with path_commands(pair.take, directory) as commands:
        return sanity(
            SanityRun(
                access_type=access_type,
                log=directory / f"sanity-{access_type}.log",
                endpoint=f"dns:///127.0.0.1:{pair.take.forward(PORT)}",
                controller=f"dns:///127.0.0.1:{pair.give.forward(PORT)}",
                mount=f"{KUBELET}/csi-mount",
                staging=f"{KUBELET}/csi-staging",
                commands=commands,
                parameters=f"transport: {transport}\n",
            )
        )


def leftovers(pair: Pair) -> list[str]:
    """Return the zvols, targets, sessions and mounts that the suite left on the machines."""
    give, take = pair.give, pair.take
    zvols = give.run("zfs", "list", "-H", "-o", "name", "-t", "volume,snapshot").stdout
    targets = give.sh(
        "ls /sys/kernel/config/target/iscsi /sys/kernel/config/nvmet/subsystems 2>/dev/null"
        " | grep '^[in]qn' || true"
    ).stdout
    attached = take.sh(
        "ls /sys/class/iscsi_session /sys/class/nvme 2>/dev/null | grep '[0-9]$'; "
        f"findmnt -nrlo TARGET | grep {KUBELET} || true"
    ).stdout
    return f"{zvols}{targets}{attached}".split()


def main() -> int:
    """Run the suite; exit 1 unless every spec passed and nothing is left over."""
    parser = argparse.ArgumentParser(prog="tests.csi.lab_sanity")
    parser.add_argument("--transport", choices=("iscsi", "nvme"), default="iscsi")
    parser.add_argument("access_types", nargs="*", metavar="mount|block")
    args = parser.parse_args()
    access_types = args.access_types or ["mount", "block"]
    failed = False
    with restore_pair(ready()) as pair:
        install(pair)
        directory = Path(tempfile.mkdtemp(prefix="zfsilo-sanity-"))
        for access_type in access_types:
            started = time.monotonic()
            result = conform(pair, access_type, directory, args.transport)
            left = leftovers(pair)
            took = time.monotonic() - started
            print(
                f"csi-sanity {access_type}: {result} in {took:.0f} s; left over: {left}", flush=True
            )
            failed = failed or result != EXPECTED or bool(left)
        for machine in (pair.give, pair.take):
            journal = machine.run("journalctl", "--no-pager", "-o", "short-monotonic", check=False)
            (directory / f"{machine.name}.journal").write_text(journal.stdout)
        print(f"logs: {directory}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The conformance suite over real ZFS and iSCSI: controller on give, node on take, both kinds.

python -m tests.csi.lab [mount|block]
"""

from __future__ import annotations

import socketserver
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.csi.rig import KUBELET, PORT, install
from tests.csi.suite.sanity import Result, Run, sanity
from tests.lab.pair import Pair, restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

EXPECTED = Result(passed=95, failed=0, pending=1, skipped=0)
PATH_VERBS = {
    "create": 'mkdir -p "$1" && printf "%s\\n" "$1"',
    "remove": 'rmdir "$1"',
    "check": 'if [ -d "$1" ]; then echo directory; elif [ -f "$1" ]; then echo file; '
    'elif [ -e "$1" ]; then echo other; else echo not_found; fi',
}
# What the suite runs: it hands verb and path to the process that holds the lab.
CLIENT = """\
#!{python}
import socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({place!r})
    link.sendall(("{verb} " + sys.argv[1] + chr(10)).encode())
    code, _space, text = link.makefile().read().partition(" ")
print(text, end="")
sys.exit(int(code))
"""


@contextmanager
def path_commands(machine: Machine, directory: Path) -> Iterator[dict[str, Path]]:
    """Serve the suite's path commands: only one process may talk to a machine's agent."""
    place = directory / "paths.sock"

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            verb, _space, path = self.rfile.readline().decode().rstrip("\n").partition(" ")
            done = machine.run("sh", "-c", PATH_VERBS[verb], verb, path, check=False)
            self.wfile.write(f"{done.rc} {done.stdout}".encode())

    with socketserver.ThreadingUnixStreamServer(str(place), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            made = {verb: directory / verb for verb in PATH_VERBS}
            for verb, path in made.items():
                text = CLIENT.format(python=sys.executable, place=str(place), verb=verb)
                path.write_text(text)
                path.chmod(0o755)
            yield made
        finally:
            server.shutdown()
            thread.join()
            place.unlink()  # the next access type has its own


def conform(pair: Pair, access_type: str, directory: Path) -> Result:
    """Run the suite for one access type."""
    with path_commands(pair.take, directory) as commands:
        return sanity(
            Run(
                access_type=access_type, log=directory / f"sanity-{access_type}.log",
                endpoint=f"dns:///127.0.0.1:{pair.take.forward(PORT)}",
                controller=f"dns:///127.0.0.1:{pair.give.forward(PORT)}",
                mount=f"{KUBELET}/csi-mount", staging=f"{KUBELET}/csi-staging",
                commands=commands,
            )
        )  # fmt: skip


def leftovers(pair: Pair) -> list[str]:
    """Return what the suite left on the machines: zvols, targets, sessions, mounts."""
    give, take = pair.give, pair.take
    found = give.run("zfs", "list", "-H", "-o", "name", "-t", "volume,snapshot").stdout
    found += give.sh("ls /sys/kernel/config/target/iscsi | grep ^iqn || true").stdout
    found += take.sh(
        f"ls /sys/class/iscsi_session 2>/dev/null; findmnt -nrlo TARGET | grep {KUBELET} || true"
    ).stdout
    return found.split()


def main() -> int:
    """Run the suite; exit 1 unless everything passed and nothing is left."""
    kinds = sys.argv[1:] or ["mount", "block"]
    bad = False
    with restore_pair(ready()) as pair:
        install(pair)
        directory = Path(tempfile.mkdtemp(prefix="zfsilo-sanity-"))
        for kind in kinds:
            begun = time.monotonic()
            result = conform(pair, kind, directory)
            left = leftovers(pair)
            took = time.monotonic() - begun
            print(f"csi-sanity {kind}: {result} in {took:.0f} s; left over: {left}", flush=True)
            bad = bad or result != EXPECTED or bool(left)
        for machine in (pair.give, pair.take):
            journal = machine.run("journalctl", "--no-pager", "-o", "short-monotonic", check=False)
            (directory / f"{machine.name}.journal").write_text(journal.stdout)
        print(f"logs: {directory}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

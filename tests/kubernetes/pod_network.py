"""The network of a pod whose sidecar listens at all addresses, which are none of the host's."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.kubernetes.processes import ClusterProcess

FORWARDER = Path(__file__).with_name("pod_forwarder.py")
OPEN = "network "


class PodNetwork(ClusterProcess):
    """A network namespace that lasts as long as its forwarder."""

    def __init__(self, log: Path) -> None:
        super().__init__(log, [])

    def open(self, *ports: int) -> None:
        """Start the forwarder with the ports that it takes."""
        self.words = [sys.executable, str(FORWARDER), *map(str, ports)]
        self.start()
        self.wait_for(OPEN)

    def words_inside(self, *words: str | Path) -> list[str]:
        """Return the command that runs another one in the network."""
        number = self.log.read_text().rpartition(OPEN)[2].split()[0]
        return ["nsenter", f"--net=/proc/{self.pid}/fd/{number}", *map(str, words)]

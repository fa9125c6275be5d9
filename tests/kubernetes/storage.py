"""zfsilod on the servers and on the nodes: simulated hosts that share what is on their disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kubernetes.control_plane import free_address
from tests.kubernetes.machine import NamespaceMachine, Program
from tests.kubernetes.processes import ClusterProcess
from zfsilod.host.fake import Facts

if TYPE_CHECKING:
    from collections.abc import Sequence

PROJECT = Path(__file__).parents[2]
PACKAGES = (PROJECT, PROJECT / "proto", PROJECT / "csi")
PYTHON = {"PYTHONPATH": ":".join(map(str, PACKAGES))}
CTL_S = 60
KEPT = ("content:", "owner:", "disks", "machine")  # facts of a host without volumes


class SimulatedHost:
    """One simulated host, with its folder."""

    def __init__(self, folder: Path, name: str, disks: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.log = folder / "logs" / f"{name}.log"
        self._facts = self.folder / "facts.json"
        self._boot = 0
        (self.folder / "etc").mkdir(parents=True)
        (self.folder / "run").mkdir()
        self._facts.write_text(json.dumps({"disks": str(disks)}))
        self.process: ClusterProcess

    def start(self) -> None:
        """Start zfsilod, and wait until it is ready."""
        self.process.start()
        self.process.wait_for(" is ready")

    def restart(self) -> None:
        """Kill zfsilod and start it again."""
        self.process.kill()
        self.start()

    def facts(self) -> dict[str, Any]:
        """Return the facts that remain only while a volume is in use."""
        facts = Facts(self._facts).snapshot()
        return {name: fact for name, fact in facts.items() if not name.startswith(KEPT)}

    def forget_what_is_volatile(self) -> None:
        """Remove the facts that do not outlive a reboot."""
        Facts(self._facts).reboot()

    def ctl(self, *words: str | Path) -> str:
        """Run zfsiloctl on this host."""
        done = subprocess.run(
            [sys.executable, "-m", "zfsilod.ctl", *map(str, words)],
            env=os.environ | PYTHON | {"ZFSILO_SIMULATE": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=CTL_S,
            check=False,
        )
        assert done.returncode == 0, f"zfsiloctl {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def volumes(self) -> list[str]:
        """Return the ids of all volumes that this host stores."""
        return self.ctl("volume", "list", "--quiet").split()

    def _words(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "zfsilod.daemon", "--simulate", str(self.folder), *more]

    def _configure(self, *more: str) -> None:
        lines = ["[daemon]", f'host_id = "{self.name}"', *more]
        (self.folder / "etc/zfsilod.toml").write_text("\n".join(lines) + "\n")


class PoolHost(SimulatedHost):
    """A host with a pool, which serves one zone."""

    def __init__(self, folder: Path, name: str, disks: Path, zone: str) -> None:
        super().__init__(folder, name, disks)
        self.zone = zone
        self.address = free_address()
        self._configure()
        self.process = ClusterProcess(self.log, self._words("--tcp", self.address), PYTHON)
        self.join = folder / f"{name}.join"

    def admit(self) -> None:
        """Write the join file of the plugin's controller."""
        self._issue("user", "csi", self.join, "--role", "controller")

    def invite(self, host: str) -> Path:
        """Write the join file of a node."""
        path = self.join.with_name(f"{host}.join")
        self._issue("host", host, path)
        return path

    def _issue(self, kind: str, name: str, file: Path, *more: str) -> None:
        self.ctl("pki", "issue", kind, name, *more, "--address", self.address, "--file", file)


class ClientHost(SimulatedHost):
    """The zfsilod of a node, in the machine of the node."""

    def __init__(
        self, folder: Path, name: str, disks: Path, machine: NamespaceMachine, *csi: str
    ) -> None:
        super().__init__(folder, name, disks)
        self._configure("[csi]", *csi)
        self._program = Program(self.log, machine, self._words(), PYTHON)
        self.process = self._program

    def reboot(self) -> None:
        """Lose what is volatile, and have another boot id from now on."""
        self._boot += 1
        self.forget_what_is_volatile()
        self._program.environment["ZFSILO_BOOT_ID"] = f"{self._boot:032x}"


def python_program(module: str, *words: str) -> Sequence[str]:
    """Return the command of one of the project's programs."""
    return [sys.executable, "-m", module, *words]

"""The pair of machines: cold boot, saving and restoring."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from tests.lab.emulator import CODE, GIVE, TAKE, Hardware, MachinePaths, emulator_version
from tests.lab.errors import LabError
from tests.lab.images.build import Images, images
from tests.lab.machine import Machine, create_overlays
from tests.setup.cache import held

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

T = TypeVar("T")
# ssh, gRPC, metrics.
FORWARDED = (22, 9750, 9751)
# Below the range for outgoing connections, which could take a port while a machine is off.
PORTS = range(20000, 32000)
STATE = "state"
# Kills the emulators of a pair and removes its folder when the process that started it has exited.
REAPER = """
read -r word && exit
for file in "$1"/*/pid; do
    pid=$(cat "$file") && grep -qF "$1" "/proc/$pid/cmdline" && kill -9 "$pid"
done
rm -rf "$1"
"""


class Pair:
    """Two machines, give and take, that can reach each other and no other host."""

    def __init__(self, boot_images: Images, forwarded: Sequence[int]) -> None:
        self.images = boot_images
        # Short: the path of a unix socket may have 107 characters.
        self.work = Path(tempfile.mkdtemp(prefix="zfsilo-lab-"))
        self.reaper = subprocess.Popen(
            ["sh", "-c", REAPER, "reaper", str(self.work)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.cleanup = contextlib.ExitStack()
        self.give = self.machine(GIVE, TAKE, forwarded)
        self.take = self.machine(TAKE, GIVE, forwarded)

    def machine(self, hardware: Hardware, peer: Hardware, forwarded: Sequence[int]) -> Machine:
        """A machine of this pair, powered off."""
        paths = MachinePaths(
            folder=self.work / hardware.name,
            lan=self.work / f"lan-{hardware.name}",
            peer_lan=self.work / f"lan-{peer.name}",
            forwards=tuple((guest, free_port()) for guest in forwarded),
        )
        return Machine(hardware, self.images, paths)

    def both(self, action: Callable[[Machine], T]) -> tuple[T, T]:
        """Call a function for both machines concurrently; return the results of give and take."""
        with ThreadPoolExecutor(2) as threads:
            give, take = threads.map(action, (self.give, self.take))
        return give, take

    def stop(self) -> None:
        """Power both machines off and remove their files."""
        self.give.power_off()
        self.take.power_off()
        shutil.rmtree(self.work, ignore_errors=True)
        if self.reaper.stdin is not None and not self.reaper.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.reaper.stdin.write(b"done\n")
                self.reaper.stdin.close()
        self.reaper.wait()
        self.cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def boot_pair(*, code: Path | None = None, forwarded: Sequence[int] = FORWARDED) -> Pair:
    """Boot both machines from the images, which are built on first use."""
    emulator_version()
    pair = Pair(images(), forwarded)

    def boot(machine: Machine) -> str:
        bases = {"root": pair.images.root, **({"code": code} if code else {})}
        create_overlays(machine.paths, bases, machine.hardware.disks)
        return machine.cold_start()

    return started(pair, boot)


def save_pair(pair: Pair, snapshot: Path) -> None:
    """Save memory and disks of both machines to a new folder; this stops the pair."""
    for machine in (pair.give, pair.take):
        machine.freeze()

    def save(machine: Machine) -> None:
        folder = snapshot / machine.name
        folder.mkdir(parents=True)
        machine.save_state(folder / STATE)
        for name in kept_disks(machine):
            overlay = machine.paths.disk(name)
            shutil.move(overlay, folder / overlay.name)

    pair.both(save)
    pair.stop()


def restore_pair(
    snapshot: Path, *, code: Path | None = None, forwarded: Sequence[int] = FORWARDED
) -> Pair:
    """A new pair in the state of a snapshot, with the image `code` on the code disks."""
    emulator_version()
    pair = Pair(images(), forwarded)
    pair.cleanup.enter_context(held(snapshot))

    def restore(machine: Machine) -> None:
        saved = snapshot / machine.name
        bases = {name: saved / machine.paths.disk(name).name for name in kept_disks(machine)}
        if code is not None:
            bases["code"] = code
        create_overlays(machine.paths, bases, machine.hardware.disks)
        machine.power_on(snapshot=saved / STATE)
        machine.resume()

    return started(pair, restore)


def kept_disks(machine: Machine) -> list[str]:
    """The disks in a snapshot: all but the code disk, which is chosen at every start."""
    return ["root", *(name for name in machine.hardware.disks if name != CODE)]


def started(pair: Pair, start: Callable[[Machine], object]) -> Pair:
    """The pair after `start` on both machines; it is removed if that fails."""
    try:
        pair.both(start)
    except BaseException as error:
        notes = [machine.console_tail() for machine in (pair.give, pair.take)]
        pair.stop()
        if isinstance(error, LabError):
            for note in notes:
                error.add_note(note)
        raise
    return pair


def free_port() -> int:
    """A free port of 127.0.0.1."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LabError(f"127.0.0.1: no free port from {PORTS.start} to {PORTS.stop - 1}")

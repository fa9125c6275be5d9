"""Both machines together: start them cold, save them, restore them."""

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

from tests.lab.emulator import CODE, GIVE, TAKE, Hardware, SandboxPart, emulator_version
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
# Below the ports that the kernel gives to outgoing connections, so that none of those takes a port
# while a machine is off.
PORTS = range(20000, 32000)
STATE = "state"
# Ends the emulators of a pair and removes its folder when the process that started it is gone.
GUARD = """
read -r word && exit
for file in "$1"/*/pid; do
    pid=$(cat "$file") && grep -qF "$1" "/proc/$pid/cmdline" && kill -9 "$pid"
done
rm -rf "$1"
"""


class Pair:
    """A give and a take that see each other and nobody else."""

    def __init__(self, boot_images: Images, forwarded: Sequence[int]) -> None:
        self.images = boot_images
        # Short: the paths of unix sockets may have 107 characters.
        self.work = Path(tempfile.mkdtemp(prefix="zfsilo-lab-"))
        self.guard = subprocess.Popen(
            ["sh", "-c", GUARD, "guard", str(self.work)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.cleanup = contextlib.ExitStack()
        self.give = self.machine(GIVE, TAKE, forwarded)
        self.take = self.machine(TAKE, GIVE, forwarded)

    def machine(self, hardware: Hardware, peer: Hardware, forwarded: Sequence[int]) -> Machine:
        """A machine of this pair, still switched off."""
        place = SandboxPart(
            folder=self.work / hardware.name,
            lan=self.work / f"lan-{hardware.name}",
            peer_lan=self.work / f"lan-{peer.name}",
            forwards=tuple((guest, free_port()) for guest in forwarded),
        )
        return Machine(hardware, self.images, place)

    def both(self, action: Callable[[Machine], T]) -> tuple[T, T]:
        """Do the same with both machines at the same time; the results are give's and take's."""
        with ThreadPoolExecutor(2) as threads:
            give, take = threads.map(action, (self.give, self.take))
        return give, take

    def stop(self) -> None:
        """Switch both machines off and remove everything they wrote."""
        self.give.stop()
        self.take.stop()
        shutil.rmtree(self.work, ignore_errors=True)
        if self.guard.stdin is not None and not self.guard.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.guard.stdin.write(b"done\n")
                self.guard.stdin.close()
        self.guard.wait()
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
    """Boot both machines from the images, which are built if need be, and wait for systemd."""
    emulator_version()
    pair = Pair(images(), forwarded)

    def boot(machine: Machine) -> str:
        bases = {"root": pair.images.root, **({"code": code} if code else {})}
        create_overlays(machine.place, bases, machine.hardware.disks)
        return machine.cold_start()

    return started(pair, boot)


def save_pair(pair: Pair, snapshot: Path) -> None:
    """Save memory and disks of both machines into a new folder; this ends the pair."""
    for machine in (pair.give, pair.take):
        machine.freeze()

    def save(machine: Machine) -> None:
        folder = snapshot / machine.name
        folder.mkdir(parents=True)
        machine.save_state(folder / STATE)
        for name in kept_disks(machine):
            overlay = machine.place.disk(name)
            shutil.move(overlay, folder / overlay.name)

    pair.both(save)
    pair.stop()


def restore_pair(
    snapshot: Path, *, code: Path | None = None, forwarded: Sequence[int] = FORWARDED
) -> Pair:
    """A fresh pair in the state of a snapshot, with `code` as the content of the code disks."""
    emulator_version()
    pair = Pair(images(), forwarded)
    pair.cleanup.enter_context(held(snapshot))

    def restore(machine: Machine) -> None:
        saved = snapshot / machine.name
        bases = {name: saved / machine.place.disk(name).name for name in kept_disks(machine)}
        if code is not None:
            bases["code"] = code
        create_overlays(machine.place, bases, machine.hardware.disks)
        machine.power_on(snapshot=saved / STATE)
        machine.resume()

    return started(pair, restore)


def kept_disks(machine: Machine) -> list[str]:
    """The disks that a snapshot holds; what is on the code disk is chosen at every start."""
    return ["root", *(name for name in machine.hardware.disks if name != CODE)]


def started(pair: Pair, start: Callable[[Machine], object]) -> Pair:
    """The pair after `start` on both machines; nothing is left of it if that fails."""
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
    """A port of 127.0.0.1 that nobody listens on."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LabError("no free port on 127.0.0.1")

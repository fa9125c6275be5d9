"""Checks after each test: units, mounts, devices and processes left behind; secrets shown."""

import base64
import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.systemd import linux
from tests.systemd.namespace import SystemdHost

# Created by systemd, and removed with their unit.
PASSING_MOUNTS = ("/run/credentials/", "/run/systemd/", "/run/user/")
GRACE_S = 2.0
CHUNK_BYTES = 4 << 20


def leaks(sd: SystemdHost, *, grace_s: float = GRACE_S) -> list[str]:
    """List what operations left behind; units that are being collected get a grace period."""
    deadline = time.monotonic() + grace_s
    while left := [*_units(sd), *_loops(sd), *_processes(sd), *_mounts(sd)]:
        if time.monotonic() > deadline:
            break
        # systemd sends no signal when it collects a unit that no client has loaded.
        time.sleep(0.02)
    return left


def _units(sd: SystemdHost) -> Iterator[str]:
    listing = sd.run("systemctl", "list-units", "--all", "--output=json", "zfsilo*").stdout
    for unit in json.loads(listing):
        of_operation = unit["unit"].startswith(("zfsilo-op-", "zfsilo-rollback@"))
        if of_operation or unit["active"] == "failed":
            yield f"unit {unit['unit']} is {unit['active']} ({unit['sub']})"


def _loops(sd: SystemdHost) -> Iterator[str]:
    own = linux.machine_devices(sd.pid)
    for name, device in linux.attached_loops().items():
        if device in own:
            backing = Path(f"/sys/block/{name}/loop/backing_file").read_text().strip()
            yield f"/dev/{name} is attached to {backing}"


def _processes(sd: SystemdHost) -> Iterator[str]:
    for pid, argv in _arguments(sd):
        if b"zfsilo-worker" in argv:
            words = argv.replace(b"\0", b" ").decode(errors="replace").strip()
            yield f"process {pid} runs: {words}"
    for pid in sd.cgroup_procs.read_text().split():
        yield f"process {pid}, started by the test, still runs"


def _mounts(sd: SystemdHost) -> Iterator[str]:
    for mount in linux.mounts(sd.pid):
        if mount.point not in sd.boot_mounts and not mount.point.startswith(PASSING_MOUNTS):
            yield f"{mount.fstype} is mounted on {mount.point}"


def _arguments(sd: SystemdHost) -> Iterator[tuple[str, bytes]]:
    for path in (sd.root / "proc").glob("[0-9]*/cmdline"):
        try:
            yield path.parent.name, path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


def scan_secrets(
    sd: SystemdHost, secrets: Collection[bytes], allowed: Collection[str] = ()
) -> list[str]:
    """List every place that contains a secret, plain or in base64 or hex.

    It searches the journal of all boots, all files that the machine wrote (including core files and
    /run/systemd/transient), arguments and environment of its processes, and all properties of units
    named zfsilo*. Places whose name starts with an allowed prefix are skipped.
    """
    needles = {form: number for number, secret in enumerate(secrets) for form in _forms(secret)}
    sd.run("journalctl", "--sync")
    shown: set[str] = set()
    for place, content in [*_file_places(sd, needles, allowed), *_live_places(sd)]:
        if place.startswith(tuple(allowed)):
            continue
        numbers = {number for form, number in needles.items() if form in content}
        shown |= {f"secret {number} in {place}" for number in numbers}
    return sorted(shown)


def _forms(secret: bytes) -> set[bytes]:
    """Return a secret plain, in hex and in the three alignments of base64."""
    assert len(secret) >= 8, "a short secret would match everywhere"
    forms = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for shift in range(3):  # base64 depends on the offset of the secret modulo 3.
        encoded = base64.b64encode(bytes(shift) + secret)
        whole = (shift + len(secret)) // 3 * 4
        inner = encoded[(0, 2, 3)[shift] : whole]
        forms |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return forms


def _live_places(sd: SystemdHost) -> Iterator[tuple[str, bytes]]:
    for pid, argv in _arguments(sd):
        yield f"argv of {pid}: {argv.split(bytes(1))[0].decode(errors='replace')}", argv
        try:
            yield f"environ of {pid}", (sd.root / f"proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    properties = sd.run("systemctl", "show", "--all", "zfsilo*").stdout
    for line in properties.splitlines():
        yield f"unit property {line.partition('=')[0]}", os.fsencode(line)


def _file_places(
    sd: SystemdHost, needles: Collection[bytes], allowed: Collection[str]
) -> Iterator[tuple[str, bytes]]:
    tops = {sd.upper: ""} | {sd.root / inner: f"/{inner}" for inner in ("run", "tmp", "dev/shm")}
    for top, inner in tops.items():
        bound = {top / bind.inner.removeprefix(f"{inner}/") for bind in sd.binds}
        for path in _regular_files(top, left_out=bound):
            place = f"{inner}/{path.relative_to(top)}"
            if not place.startswith(tuple(allowed)):
                with contextlib.suppress(FileNotFoundError):  # Removed meanwhile.
                    for context in _hits(path, needles):
                        yield f"{place}{_field(context)}", context


def _regular_files(top: Path, left_out: Collection[Path]) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = [name for name in subfolders if Path(folder, name) not in left_out]
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def _hits(path: Path, needles: Collection[bytes]) -> Iterator[bytes]:
    """Yield the bytes around each needle in a file; holes of the file are skipped."""
    overlap = max(map(len, needles)) - 1
    with path.open("rb", buffering=0) as file:
        for start, end in _extents(file.fileno()):
            for offset in range(start, end, CHUNK_BYTES):
                chunk = os.pread(file.fileno(), CHUNK_BYTES + overlap, offset)
                for needle in needles:
                    at = chunk.find(needle)
                    if at >= 0:
                        yield chunk[max(0, at - 4096) : at + len(needle)]


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    size, end = os.fstat(fd).st_size, 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: the rest of the file is a hole.
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _field(context: bytes) -> str:
    """Return the name of the journal field that contains a secret."""
    match = re.search(rb"([A-Z_][A-Z0-9_]+)=[^\0]*$", context)
    return f" ({match[1].decode()}=)" if match else ""

"""Files, transactions and records that a PublishVolume touches before its first configfs write.

The service runs in this process on the simulated host, the worker in a thread of it. A profile
function counts the frames of zfsilod/; the daemon is idle while the worker runs.
`python -m tests.bench.publish_path` prints the path, a line for each change of file.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from tests.api.running import create, front_of, publish
from tests.bench.table import Figure
from zfsilod.engine.worker import work
from zfsilod.model.record import Stored, from_plain
from zfsilod.storage.store import Store
from zfsilod.storage.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

PACKAGE = str(Path(sys.modules[Stored.__module__].__file__ or "").parents[1])
READERS = ("get", "scan", "scan_below", "scan_ending")
METHOD, CONFIGFS = "PublishVolume", ("backstore:", "target:")
TURNS = 50  # of the event loop, in which a daemon that waits for its worker comes to rest
# Of LAYOUT.md section 2: before the rebuild, and the targets
FILES, CHANGES, READS, WRITES = (30, 15), (217, 80), (14, 5), (9, 2)
COMMITS = (9, 3)
VOLUME_READS, OPERATION_DECODES = 6, 14


class PathCounts(NamedTuple):
    """What one PublishVolume did up to the first configfs write."""

    files: frozenset[str]
    path: tuple[str, ...]  # "daemon requests/request.py submit": an entry for each change of file
    transactions: Counter[str]  # "daemon read", "daemon change", "worker read", "worker change"
    reads: Counter[str]  # of records: "daemon Volume", "worker Operation", ...
    decodes: Counter[str]  # of records, with the same names
    commits: Counter[str]  # "daemon", "worker": of the whole request, its effects included


class PathTrace:
    """A profile function that counts from the gRPC method to the first effect on configfs."""

    def __init__(self) -> None:
        self.enabled = False
        self.active = False  # between the two ends of the path
        self.is_publishing = False  # from the method to the answer
        self.files: set[str] = set()
        self.path: list[str] = []
        self.transactions: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.decodes: Counter[str] = Counter()
        self.commits: Counter[str] = Counter()
        self.of_thread = threading.local()  # role and last file
        self.read_by_worker: set[tuple[str, str, int]] = set()
        self.readers = {code_of(Transaction, name) for name in READERS}

    @property
    def role(self) -> str:
        """Whether this thread is the daemon or the worker."""
        return str(getattr(self.of_thread, "role", "daemon"))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Profile this thread and the threads that start meanwhile; count transactions."""
        threading.setprofile(self)
        sys.setprofile(self)
        with self.counted("read"), self.counted("change"):
            try:
                yield
            finally:
                sys.setprofile(None)
                threading.setprofile(None)

    @contextmanager
    def counted(self, method: str) -> Iterator[None]:
        """Count the calls of a method of Store that opens transactions."""
        opened = getattr(Store, method)

        def count_and_open(store: Store) -> Any:
            if self.is_publishing and method == "change":
                self.commits[self.role] += 1
            if self.active:
                self.transactions[f"{self.role} {method}"] += 1
            return opened(store)

        with mock.patch.object(Store, method, count_and_open):
            yield

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """Count a call or a return; the interpreter calls this for each."""
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(PACKAGE):
            return
        if code is work.__code__:
            self.of_thread.role = "worker" if event == "call" else "daemon"
        if self.enabled and event == "call" and code.co_name == METHOD:
            self.active = self.is_publishing = True
        elif code.co_name == "effect" and frame.f_locals["name"].startswith(CONFIGFS):
            self.active = self.enabled = False
        if self.active and event == "call":
            self.count_file(code.co_filename, code.co_name)
        elif self.active and isinstance(value, Stored):
            self.count_record(frame, value)

    def count_file(self, file: str, function: str) -> None:
        """Count a frame in a file: a change of file if the thread was in another one before."""
        self.files.add(file)
        if file != getattr(self.of_thread, "file", ""):
            self.of_thread.file = file
            self.path.append(f"{self.role} {file.removeprefix(PACKAGE)[1:]} {function}")

    def count_record(self, frame: FrameType, record: Stored) -> None:
        """Count a record that a function returns: it was read, or decoded.

        A worker is a process of its own and has no decoded records when it starts. Here it shares
        the cache of the daemon, so each version that it reads for the first time counts as decoded.
        """
        code, name = frame.f_code, f"{self.role} {type(record).__name__}"
        if code in self.readers:
            self.reads[name] += 1
            version = (name, record.key, record.revision)
            if self.role == "worker" and version not in self.read_by_worker:
                self.read_by_worker.add(version)
                self.decodes[name] += 1
        elif code is from_plain.__code__ and self.role == "daemon":
            caller = frame.f_back
            if caller is None or caller.f_code.co_filename != code.co_filename:
                self.decodes[name] += 1

    def end(self) -> None:
        """Count no further commits: the request is answered."""
        self.is_publishing = False

    def counts(self) -> PathCounts:
        """Return the counts."""
        return PathCounts(
            files=frozenset(self.files),
            path=tuple(self.path),
            transactions=self.transactions,
            reads=self.reads,
            decodes=self.decodes,
            commits=self.commits,
        )


def code_of(owner: type, name: str) -> CodeType:
    """Return the code object of a method."""
    code: CodeType = getattr(owner, name).__code__
    return code


async def trace_publish(directory: Path) -> PathCounts:
    """Publish a volume over gRPC, and count; a first publish has imported all modules before."""
    trace = PathTrace()
    for name in ("imports", "traced"):
        (directory / name).mkdir()
    with trace.installed():  # for both: the threads of the first are used again
        await publish_volume(directory / "imports", trace.end)
        trace.enabled = True
        await publish_volume(directory / "traced", trace.end)
    return trace.counts()


async def publish_volume(directory: Path, answered: Callable[[], None]) -> None:
    """Start a service, create a volume, and publish it; its worker starts when the daemon rests."""
    async with front_of(directory) as front:
        api, launcher = front.root(), front.fixture.launcher
        await api.volumes.CreateVolume(create())
        launcher.gate.clear()
        before = len(launcher.tasks)
        published = asyncio.ensure_future(api.volumes.PublishVolume(publish()))
        while len(launcher.tasks) == before:
            await asyncio.sleep(0)
        for _turn in range(TURNS):
            await asyncio.sleep(0)
        launcher.gate.set()
        await published
        answered()


def measure() -> PathCounts:
    """Return the counts of a publish in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        return asyncio.run(trace_publish(Path(directory)))


def figures() -> Iterator[Figure]:
    """Yield the counts beside those before the rebuild and the targets."""
    counts = measure()
    yield limited("files", len(counts.files), FILES)
    yield limited("changes of file", len(counts.path), CHANGES)
    for method, name, figure in (("read", "read", READS), ("change", "write", WRITES)):
        by_worker = counts.transactions[f"worker {method}"]
        note = f" in the daemon, {by_worker} in the worker"
        opened = counts.transactions[f"daemon {method}"]
        yield limited(f"{name} transactions", opened, figure, note)
    commits = counts.commits
    note = f": {commits['daemon']} in the daemon, {commits['worker']} in the worker"
    yield limited("LMDB commits", commits.total(), COMMITS, note)
    yield Figure("reads of the volume", f"{total(counts.reads, 'Volume')} (was {VOLUME_READS})")
    decoded = total(counts.decodes, "Operation")
    yield Figure("decodes of the operation", f"{decoded} (was {OPERATION_DECODES})")
    yield Figure("reads of records", f"{counts.reads.total()}: {listed(counts.reads)}")
    yield Figure("decodes of records", f"{counts.decodes.total()}: {listed(counts.decodes)}")


def limited(name: str, value: int, figure: tuple[int, int], note: str = "") -> Figure:
    """Return a figure with its target; `figure`: the value before the rebuild, the target."""
    before, limit = figure
    note = f"{note} (was {before}{', worker included' if note else ''})"
    return Figure(f"{name} of a publish", f"{value}{note}", f"at most {limit}", value <= limit)


def total(counts: Counter[str], kind: str) -> int:
    """Return the sum of daemon and worker for a class of records."""
    return counts[f"daemon {kind}"] + counts[f"worker {kind}"]


def listed(counts: Counter[str]) -> str:
    """Return counts in one line."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    print("\n".join(measure().path))

"""Upper bounds of the reads and writes of a PublishVolume before its first configfs write.

`python -m tests.bench publish_path` prints the figures. Lower the bounds when the figures fall.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.bench.publish_path import trace_publish

if TYPE_CHECKING:
    from pathlib import Path

# Three files and their calls replace contextlib, json and pathlib, which are not counted. Two files
# are of a task of the daemon that may run meanwhile. All of the export is probed before its first
# write, since its actions are marked together: six probes more, with the secrets of the ACL, and
# two files, those of groups and of access. One is the guard that gRPC and HTTP share, one the queue
# of launches, and three the tables of transports.
FILES = 50
TRACES = 3  # on a busy machine more tasks of the daemon run meanwhile; the fewest files count
CHANGES_OF_FILE = 415  # the order in which tasks wake varies by machine
TRANSACTIONS = {"daemon read": 1, "daemon change": 1, "worker read": 3, "worker change": 2}
READS = {"Volume": 2, "Host": 2, "Operation": 4}
DECODES = {"Host": 1, "Operation": 2}


async def test_a_publish_stays_below_its_bounds(tmp_path: Path) -> None:
    traces = []
    for number in range(TRACES):
        folder = tmp_path / str(number)
        folder.mkdir()
        traces.append(await trace_publish(folder))
    counts = min(traces, key=lambda trace: len(trace.files))
    assert len(counts.files) <= FILES, sorted(counts.files)
    assert min(len(trace.path) for trace in traces) <= CHANGES_OF_FILE
    assert not counts.transactions - Counter(TRANSACTIONS)
    assert not summed(counts.reads) - Counter(READS)
    assert not summed(counts.decodes) - Counter(DECODES)


def summed(counts: Counter[str]) -> Counter[str]:
    """Return the counts of daemon and worker together, by class of record."""
    both: Counter[str] = Counter()
    for name, count in counts.items():
        both[name.partition(" ")[2]] += count
    return both

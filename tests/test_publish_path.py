"""Upper bounds of what a PublishVolume reads and writes before its first configfs write.

`python -m tests.bench publish_path` prints the figures. Lower the bounds when the figures fall.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.bench.publish_path import trace_publish

if TYPE_CHECKING:
    from pathlib import Path

FILES, CHANGES_OF_FILE = 34, 280
TRANSACTIONS = {"daemon read": 4, "daemon change": 1, "worker read": 2, "worker change": 1}
READS = {"Volume": 5, "Host": 2, "Publication": 1, "Operation": 5}
DECODES = {"Volume": 1, "Host": 1, "Publication": 1, "Operation": 2}


async def test_a_publish_stays_below_its_bounds(tmp_path: Path) -> None:
    counts = await trace_publish(tmp_path)
    assert len(counts.files) <= FILES, sorted(counts.files)
    assert counts.changes_of_file <= CHANGES_OF_FILE
    assert not counts.transactions - Counter(TRANSACTIONS)
    assert not summed(counts.reads) - Counter(READS)
    assert not summed(counts.decodes) - Counter(DECODES)


def summed(counts: Counter[str]) -> Counter[str]:
    """Return the counts of daemon and worker together, by class of record."""
    both: Counter[str] = Counter()
    for name, count in counts.items():
        both[name.partition(" ")[2]] += count
    return both

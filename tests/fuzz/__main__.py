"""Long fuzz run, `make fuzz`: prints outcomes and failures, then `N passed, N failed`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings

from tests.fuzz import bus, messages
from tests.fuzz.parsers import PARSERS, try_parser

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

SHOWN = 20


def main() -> int:
    """Run all parts; exit 1 when an input failed."""
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=5_000, help="for each parser")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    count = options.messages + options.calls + options.examples * len(PARSERS)
    failures = list(_all(options))
    for failure in failures[:SHOWN]:
        print(failure)
    print(f"{count - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0


def _all(options: argparse.Namespace) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        sent = asyncio.run(messages.fuzz(Path(folder), options.messages, options.seed))
        _summarize(f"{options.messages} messages over all methods", start, sent.codes)
        print(f"  memory grew by {sent.grown_bytes >> 20} MiB")
        yield from sent.failures
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        called = asyncio.run(bus.fuzz(Path(folder), options.calls, options.seed))
        _summarize(f"{options.calls} D-Bus calls over all members", start, called.errors)
        yield from called.failures
    for name in PARSERS:
        yield from _parser(name, options.examples)
    print(f"{options.examples} texts for each of {len(PARSERS)} parsers")


def _parser(name: str, examples: int) -> Iterator[str]:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(PARSERS[name][0])
    def run(text: object) -> None:
        try_parser(name, text)

    try:
        run()
    except Exception as error:
        yield f"parser of {name}: {error!r}"


def _summarize(inputs: str, start: float, answers: Counter[str]) -> None:
    print(f"{inputs} in {time.monotonic() - start:.0f} s")
    for name, number in answers.most_common():
        print(f"  {number:7} {name}")


if __name__ == "__main__":
    sys.exit(main())

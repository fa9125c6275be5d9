"""The parser of streams of `zfs send`, with made streams in both byte orders, cut anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host import made_streams
from tests.host.made_streams import TO_THE_END, MadeStream
from zfsilod.host.send_stream import RECORD_BYTES, StreamReader, changes, freed_from, ordered
from zfsilod.model.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.model.host_facts import BlockRange

BLOCK = 16384
SIZE = 64 * BLOCK
ORDERS = pytest.mark.parametrize("order", ["<", ">"])
# What each block of a zvol is: written, freed, or not in the stream.
STATES = st.lists(st.sampled_from(["write", "compressed", "embedded", "free", ""]), max_size=64)
BAD = "the stream of zfs send cannot be read"


def pieces(content: bytes, length: int) -> Iterator[bytes]:
    """Yield a stream in pieces, as a pipe does."""
    for start in range(0, len(content), length):
        yield content[start : start + length]


def parsed(stream: MadeStream, length: int = 1000) -> list[BlockRange]:
    return list(changes(StreamReader(pieces(stream.content, length))))


def joined(stream: MadeStream, *, zero_until: int = SIZE, start: int = 0) -> list[BlockRange]:
    records = changes(StreamReader(pieces(stream.content, 4096)))
    return list(ordered(records, start=start, size_bytes=SIZE, zero_until=zero_until))


def made(states: list[str], order: str = "<") -> MadeStream:
    """Return the stream of a zvol whose blocks are so, as ZFS makes it."""
    stream = MadeStream(order).begin().numbers(made_streams.FREEOBJECTS, 0, 1)
    stream.numbers(made_streams.RANGE, 0, 32).object(bonus=13)
    stream.free(len(states) * BLOCK, TO_THE_END)
    for number, state in enumerate(states):
        match state:
            case "write":
                stream.write(number * BLOCK, BLOCK)
            case "compressed":
                stream.write(number * BLOCK, BLOCK, stored=512)
            case "embedded":
                stream.embedded(number * BLOCK, BLOCK, 75)
            case "free":
                stream.free(number * BLOCK, BLOCK)
    stream.object(2, raw_bonus=320).free(512, TO_THE_END, number=2).spill(512)
    return stream.write(0, 512, number=2).free(512, 1024, number=2).spill(512, stored=40).end()


@ORDERS
def test_every_type_of_record(order: str) -> None:
    stream = MadeStream(order).begin(payload=bytes(96)).object(bonus=3)
    stream.write(0, BLOCK).write(BLOCK, BLOCK, stored=1024).embedded(2 * BLOCK, BLOCK, 9)
    stream.byref(3 * BLOCK, BLOCK).free(4 * BLOCK, 2 * BLOCK).spill(512).end()
    assert parsed(stream) == [
        (0, BLOCK, False),
        (BLOCK, BLOCK, False),
        (2 * BLOCK, BLOCK, False),
        (3 * BLOCK, BLOCK, False),
        (4 * BLOCK, 2 * BLOCK, True),
    ]


@settings(deadline=None)
@given(STATES, st.sampled_from("<>"), st.integers(1, 40_000))
def test_the_blocks_of_a_stream(states: list[str], order: str, length: int) -> None:
    """However a pipe cuts the stream."""
    stream = made(states, order)
    expected = [
        (number * BLOCK, BLOCK, state == "free") for number, state in enumerate(states) if state
    ]
    assert parsed(stream, length) == [(len(states) * BLOCK, TO_THE_END, True), *expected]


@settings(deadline=None)
@given(STATES, st.integers(0, SIZE), st.integers(0, SIZE))
def test_ranges_are_ordered_and_complete(states: list[str], start: int, zero_until: int) -> None:
    ranges = joined(made(states), start=start, zero_until=zero_until)
    position = start
    for offset, length, _zero in ranges:
        assert offset >= position
        assert length > 0
        position = offset + length
    assert position <= max(start, SIZE)
    covered = {
        (byte, zero)
        for offset, length, zero in ranges
        for byte in range(-(-offset // 512) * 512, offset + length, 512)
    }
    states = states + ["free"] * (64 - len(states))
    assert covered == {
        (byte, state == "free")
        for number, state in enumerate(states)
        for byte in range(number * BLOCK, (number + 1) * BLOCK, 512)
        if state and byte >= start and (state != "free" or byte < zero_until)
    }


@settings(deadline=None, max_examples=50)
@given(STATES, st.data())
def test_a_stream_that_is_cut_off_is_an_error(states: list[str], data: st.DataObject) -> None:
    stream = made(states)
    end = data.draw(st.integers(0, len(stream.content) - 1))
    with pytest.raises(CommandFailed, match=BAD) as failed:
        list(changes(StreamReader(pieces(stream.content[:end], 5000))))
    assert failed.value.reason == "BAD_STREAM"


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=2000))
def test_what_is_no_stream_is_an_error(content: bytes) -> None:
    with pytest.raises(CommandFailed, match=BAD):
        list(changes(StreamReader(pieces(content, 100))))


@pytest.mark.parametrize("kind", [made_streams.REDACT, 11, 255])
def test_a_record_that_is_not_understood_is_an_error(kind: int) -> None:
    stream = MadeStream().begin().object().numbers(kind, 1, 1).end()
    with pytest.raises(CommandFailed, match=f"a record of the type {kind}"):
        parsed(stream)


@pytest.mark.parametrize(
    "stream",
    [
        MadeStream().begin(kind=2).end(),  # of several datasets
        MadeStream().begin(features=1 << 21).end(),  # redacted
        MadeStream().end(),
        MadeStream().begin().end().end(),
        MadeStream().begin().end().write(0, 1),
    ],
)
def test_a_stream_of_another_kind_is_an_error(stream: MadeStream) -> None:
    with pytest.raises(CommandFailed, match=BAD):
        parsed(stream)


@pytest.mark.parametrize(
    "records",
    [
        MadeStream().begin().write(BLOCK, BLOCK).write(0, BLOCK),
        MadeStream().begin().write(0, 2 * BLOCK).write(BLOCK, BLOCK),
        MadeStream().begin().free(0, 2 * BLOCK).write(BLOCK, BLOCK),
        MadeStream().begin().free(BLOCK, TO_THE_END).write(BLOCK, BLOCK),
    ],
)
def test_records_in_another_order_are_an_error(records: MadeStream) -> None:
    """Offsets that were passed already would be lost."""
    with pytest.raises(CommandFailed, match="order of their offsets"):
        joined(records.end())


def test_what_is_freed_at_the_end_is_cut_to_what_there_was() -> None:
    stream = made(["write", "", "free"])
    assert joined(stream, zero_until=2 * BLOCK) == [(0, BLOCK, False)]
    assert joined(stream, zero_until=9 * BLOCK) == [
        (0, BLOCK, False),
        (2 * BLOCK, BLOCK, True),
        (3 * BLOCK, 6 * BLOCK, True),
    ]


def test_a_range_that_is_freed_up_to_the_largest_offset() -> None:
    """ZFS does so for a hole whose end has no offset: overflow_multiply in dmu_send.c."""
    stream = MadeStream().begin().object().free(9 * BLOCK, TO_THE_END).write(0, BLOCK)
    stream.free(4 * BLOCK, TO_THE_END - 4 * BLOCK).end()
    assert joined(stream) == [(0, BLOCK, False), (4 * BLOCK, 60 * BLOCK, True)]


def test_the_end_of_what_is_in_use() -> None:
    for states in (["write"] * 3, ["free", "", "write"]):
        reader = StreamReader(pieces(made(states).content, 1000))
        assert freed_from(changes(reader)) == 3 * BLOCK
    with pytest.raises(CommandFailed, match="where the zvol ends"):
        freed_from(iter([(0, BLOCK, False)]))


def test_the_start_of_a_stream_is_enough_for_its_end() -> None:
    content = made(["write"] * 9).content
    reader = StreamReader(pieces(content[: 6 * RECORD_BYTES], 100))
    assert freed_from(changes(reader)) == 9 * BLOCK

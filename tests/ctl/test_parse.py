"""Parsers of arguments: sizes are exact, and every other text is refused."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfsilod.api.http.context import TIMEOUT_HEADER, timeout_in
from zfsilod.ctl.parse import (
    LARGEST,
    assignments,
    bare,
    changes,
    parse_size,
    parse_timeout,
    resource,
)
from zfsilod.ctl.times import show_age
from zfsilod.model.deadlines import LONGEST_S, SHORTEST_S
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.sizes import UNITS, show_exact, show_size

digits = st.text("0123456789", min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("10G", 10 << 30),
        ("10g", 10 << 30),
        ("512MiB", 512 << 20),
        ("1.5T", 3 << 39),
        ("0.5K", 512),
        ("1.0001K", 1025),  # a part of a byte is a byte
        ("3E", 3 << 60),
        (" 1K ", 1024),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1",
        "1 G",
        "1e9",
        "0x10",
        "1.G",
        ".5G",
        "1,5G",
        "10GB",
        "10X",
        "1GiBs",
        "٣",
        "8E",
        "9" * 30,
    ],
)
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


@pytest.mark.parametrize("text", ["10GB", "10gb"])
def test_gb_is_ambiguous(text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"ambiguous size {text}: write 10GiB"):
        parse_size(text)


@given(digits, digits, st.sampled_from(["", "B", *UNITS, *(f"{unit}iB" for unit in UNITS)]))
def test_sizes_are_exact(whole: str, fraction: str, unit: str) -> None:
    scale = 1024 ** (UNITS.index(unit[0]) + 1) if unit.rstrip("B") else 1
    exact = Fraction(f"{whole}.{fraction}") * scale
    text = f"{whole}.{fraction}{unit}"
    if exact > LARGEST:
        with pytest.raises(InvalidArgument, match="larger than any volume"):
            parse_size(text)
    else:
        assert exact <= parse_size(text) < exact + 1


@given(st.integers(0, LARGEST))
def test_plain_bytes_are_not_converted(size: int) -> None:
    assert parse_size(str(size)) == size
    assert f"{size} bytes" in show_exact(size)


@given(st.text(max_size=20))
def test_every_text_is_a_size_or_refused(text: str) -> None:
    with suppress(InvalidArgument):
        assert 0 <= parse_size(text) <= LARGEST


@given(st.integers(1024, LARGEST))
def test_shown_sizes_are_near(size: int) -> None:
    number, unit = show_size(size).split()
    shown = Fraction(number) * 1024 ** (UNITS.index(unit[0]) + 1)
    assert abs(shown - size) <= Fraction(size, 20)
    assert Fraction(number) < 1024


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 30, "1.0 GiB"),
        (3 << 29, "1.5 GiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        ((1 << 63) - 1, "8.0 EiB"),
    ],
)
def test_shown_sizes(size: int, text: str) -> None:
    assert show_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (86400 * 12, "12d")],
)
def test_ages(seconds: int, text: str) -> None:
    assert show_age(seconds) == text


def test_ids_and_resource_names_are_equivalent() -> None:
    assert bare("volumes/data", "volumes") == bare("data", "volumes") == "data"
    assert resource("volumes/data", "volumes") == resource("data", "volumes") == "volumes/data"


def test_assignments_and_removals() -> None:
    assert assignments(["a=1", "b=", "c=x=y"], "label") == {"a": "1", "b": "", "c": "x=y"}
    assert changes(["a=1", "b-", "c=-"], "label") == ({"a": "1", "c": "-"}, ["b"])
    for wrong in ("a", "=1", "-"):
        with pytest.raises(InvalidArgument):
            changes([wrong], "label")


def test_a_timeout_is_one_that_the_daemon_takes() -> None:
    for text, expected in (("100000", LONGEST_S), ("0.0004", SHORTEST_S), ("12.5", 12.5)):
        seconds = parse_timeout(text)
        assert seconds == expected
        assert timeout_in({TIMEOUT_HEADER: f"{seconds:.3f}"}) == expected
    with pytest.raises(InvalidArgument):
        parse_timeout("0")

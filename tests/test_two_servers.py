"""Some random sequences of two servers, and those that once showed a defect."""

from __future__ import annotations

import os

import pytest

from tests.crash.two_servers import check_sequences

SEED = int(os.environ.get("ZFSILO_SEED", "20260101"))
FORMER = (
    3,  # a hold that was released behind the change of the role
    26,  # a demotion that a reboot stopped, and that waited for the word of the peer
    5038,  # two promotions in the same second
    43,  # a publication that a reboot stopped, while the peer is away
)


@pytest.mark.parametrize("number", FORMER)
def test_a_former_sequence(number: int) -> None:
    problems: list[str] = []
    check_sequences(number, 1, problems.append)
    assert problems == [""]


def test_random_sequences() -> None:
    problems: list[str] = []
    check_sequences(SEED, 12, problems.append)
    assert problems == [""] * 12

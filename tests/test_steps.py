"""The step contract on the fake host; the same runs on real ones in tests/lab/test_contract.py."""

from __future__ import annotations

import pytest

from tests.examples import steps
from tests.lab.contract import CONSUMER, EXAMPLES, SERVER, Contract, Saw, secrets
from zfsilod.host.fake import FakeHost


@pytest.fixture
def cases() -> dict[str, str]:
    """The cases of a test, each with its error."""
    return {}


@pytest.fixture
def contract(cases: dict[str, str]) -> Contract:
    """The contract on a fake host of the test's own."""
    host = FakeHost(chap=secrets)
    saw = Saw()
    saw.through(host.facts, "effect")
    return Contract(host, saw, host.facts.snapshot, cases.__setitem__)


def failed(cases: dict[str, str]) -> list[str]:
    """Return the cases that went wrong, with their errors."""
    assert cases, "no case was run"
    return [f"{name}: {error}" for name, error in cases.items() if error]


@pytest.mark.parametrize("name", [*SERVER, *CONSUMER])
def test_an_example_there_and_back(name: str, contract: Contract, cases: dict[str, str]) -> None:
    contract.example(name)
    assert failed(cases) == []
    assert {each.partition(":")[0] for each in contract.host.facts.snapshot()} <= {"content"}  # type: ignore[attr-defined]


def test_what_is_not_ours_stays(contract: Contract, cases: dict[str, str]) -> None:
    contract.foreign_server()
    contract.foreign_consumer()
    assert failed(cases) == []


def test_the_examples_hold_every_step() -> None:
    walked = {type(action.step) for each in EXAMPLES.values() for action in each.actions}
    assert {type(step) for step in steps()} <= walked

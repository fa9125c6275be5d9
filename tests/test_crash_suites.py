"""How the suites of the crash tests are shared out to processes."""

from __future__ import annotations

from collections import Counter

from tests.crash.cases import CASES
from tests.crash.suites import DIVISIBLE, LAB, LOCAL, SUITES, lanes


def test_each_case_of_a_divided_suite_is_run_once() -> None:
    cases = Counter(
        (name, case.name)
        for lane in lanes(list(DIVISIBLE))
        for name in lane.names
        for case in CASES[lane.part :: lane.parts]
    )
    assert cases == Counter((name, case.name) for name in DIVISIBLE for case in CASES)


def test_the_suites_of_the_lab_are_first_and_in_one_process() -> None:
    """They share two machines, and take longer than any other."""
    lab, *others = lanes(list(SUITES))
    assert (lab.names, lab.parts) == (list(LAB), 1)
    assert {name for lane in others for name in lane.names} == set(LOCAL)
    assert set(DIVISIBLE) < set(LOCAL)
    assert all(len(lane.names) == 1 for lane in others)

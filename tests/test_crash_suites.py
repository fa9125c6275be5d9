"""How the suites of the crash tests are shared out to processes."""

from __future__ import annotations

from tests.crash.cases import CASES
from tests.crash.suites import DIVISIBLE, LOCAL, SUITES, lanes


def test_two_processes_have_each_case_once() -> None:
    first, second = lanes(["matrix", "units"])
    assert (first.names, second.names) == (["matrix", "units"], ["matrix"])
    parts = [CASES[lane.part :: lane.parts] for lane in (first, second)]
    assert sorted(case.name for part in parts for case in part) == sorted(
        case.name for case in CASES
    )


def test_the_lab_has_a_process_of_its_own() -> None:
    local, lab = lanes(list(SUITES))
    assert local.names == list(LOCAL)
    assert {*local.names, *lab.names} == set(SUITES)
    assert {local.parts, lab.parts} == {1}
    assert set(DIVISIBLE) < set(LOCAL)

"""The step contract (contract.py) on the two machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.install import PACKAGES
from tests.lab.test_nvme_tls import TLSHD

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

TESTS = Path(__file__).parents[1]
FOLDER = "/root/contract"
FILES = (
    "__init__.py",
    "examples.py",
    "lab/__init__.py",
    "lab/contract.py",
    "lab/contract_examples.py",
    "lab/contract_main.py",
)
START = f"""\
import sys
sys.path[:0] = [{PACKAGES!r}, {FOLDER!r}]
from tests.lab.contract_main import main
main(sys.argv[1:])
"""
PART_TIMEOUT_S = 1500  # both machines of two pairs at once, on two cores
MIN_SERVER_CASES = 100
MIN_CLIENT_CASES = 60
MIN_NVME_CASES = 30
MIN_TLS_CASES = 15


def run(machine: Machine, *words: str) -> int:
    """Run a part of the contract inside a machine, assert all its cases, and count them."""
    for name in FILES:
        machine.put(f"{FOLDER}/tests/{name}", (TESTS / name).read_bytes(), 0o600)
    done = machine.run(
        "python3", "-I", "-B", "-c", START, *words, timeout_s=PART_TIMEOUT_S, check=False
    )
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"{machine.name} {' '.join(words)}: {len(cases)} cases in {done.seconds:.1f} s")
    failed = [f"{case['case']}\n{case['error']}" for case in cases if not case["ok"]]
    assert not failed, f"{machine.name}: {len(failed)} of {len(cases)}:\n" + "\n".join(failed)
    assert done.rc == 0, f"{machine.name}: after {len(cases)} cases: {done.stderr}"
    return len(cases)


@pytest.mark.timeout(2400, func_only=True)
class TestServer:
    """Every step of the server's examples."""

    def test_step_contract(self, pair: Pair) -> None:
        assert run(pair.give, "server", "iscsi") >= MIN_SERVER_CASES
        assert leak_check.leaks(pair) == []

    @pytest.mark.long
    def test_step_contract_over_nvme(self, pair: Pair) -> None:
        assert run(pair.give, "server", "nvme") >= MIN_NVME_CASES
        assert leak_check.leaks(pair) == []


@pytest.mark.timeout(2400, func_only=True)
class TestClient:
    """Every step of the client's examples, on a pair of its own: it can run beside the server's."""

    def test_step_contract(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        run(give, "prepare", "unpublish")
        assert run(take, "client", "iscsi") >= MIN_CLIENT_CASES
        run(take, "prepare", "grow")
        run(give, "guard")
        run(give, "resize")
        run(take, "example", "grow")
        run(take, "prepare", "refresh-secrets")
        run(give, "rotate")
        run(take, "example", "refresh-secrets")
        run(give, "clean-up", "unpublish")
        assert leak_check.leaks(pair) == []

    @pytest.mark.long
    def test_step_contract_over_nvme(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        run(give, "prepare", "nvme-unpublish")
        assert run(take, "client", "nvme") >= MIN_NVME_CASES
        run(take, "prepare", "nvme-grow")
        run(give, "resize")
        run(take, "example", "nvme-grow")
        run(take, "prepare", "nvme-refresh-secrets")
        run(give, "rotate", "nvme")
        run(take, "example", "nvme-refresh-secrets")
        run(give, "clean-up", "nvme-unpublish")
        assert leak_check.leaks(pair) == []

    @pytest.mark.long
    def test_step_contract_with_tls(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        pair.both(lambda machine: machine.sh(TLSHD))
        assert run(give, "server", "tls") >= MIN_TLS_CASES
        run(give, "prepare", "tls-unpublish")
        assert run(take, "client", "tls") >= MIN_TLS_CASES
        run(take, "prepare", "tls-refresh-secrets")
        run(give, "rotate", "tls")
        run(take, "example", "tls-refresh-secrets")
        run(give, "clean-up", "tls-unpublish")
        assert leak_check.leaks(pair) == []

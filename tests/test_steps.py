"""The step contract on the fake host; the same runs on real ones in tests/lab/test_contract.py."""

from __future__ import annotations

import subprocess
import sys
from types import new_class

import pytest

from tests.examples import NVME_PUBLICATION, UID, steps
from tests.lab.contract import DATASET, Contract, EffectInterrupter
from tests.lab.contract_examples import CLIENT, EXAMPLES, SERVER, secrets
from tests.replica_stream import streams_of
from zfsilod.engine.step import Guard, HostStep
from zfsilod.engine.steps import MODULE_OF
from zfsilod.engine.steps.access import NoAcl
from zfsilod.engine.steps.snapshot import Clone
from zfsilod.engine.steps.zfs import Zvol
from zfsilod.host.fake import FakeHost
from zfsilod.model import host_facts, records
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.record import CLASSES


@pytest.fixture
def cases() -> dict[str, str]:
    """The cases of a test, each with its error."""
    return {}


@pytest.fixture
def contract(cases: dict[str, str]) -> Contract:
    """The contract on a fake host of the test's own."""
    host = FakeHost(chap=secrets)
    host.open_stream = streams_of(host, DATASET)
    interrupter = EffectInterrupter()
    interrupter.count_calls(host.facts, "effect")
    return Contract(host, interrupter, host.facts.snapshot, cases.__setitem__)


def failed(cases: dict[str, str]) -> list[str]:
    """Return the cases that went wrong, with their errors."""
    assert cases, "no case was run"
    return [f"{name}: {error}" for name, error in cases.items() if error]


@pytest.mark.parametrize("name", [*SERVER, *CLIENT])
def test_an_example_there_and_back(name: str, contract: Contract, cases: dict[str, str]) -> None:
    contract.example(name)
    assert failed(cases) == []
    assert {
        name.partition(":")[0]
        for name in contract.host.facts.snapshot()  # type: ignore[attr-defined]
    } <= {"content", "owner"}  # a generation is never given back


def test_a_removed_right_that_was_cut_off_leaves_no_port_closed() -> None:
    """The removal of one host ends the controllers of all; a worker is killed at each effect."""
    example = EXAMPLES["nvme-remove-acl"]
    (step,) = [action.step for action in example.actions]
    assert isinstance(step, NoAcl)
    completed, effects = False, 0
    while not completed:
        host = FakeHost(chap=secrets)
        for before in example.before:
            assert isinstance(before, HostStep)
            before.do(host)
        host.facts.effect(f"session:{step.target}", {"initiator": NVME_PUBLICATION.initiator})
        opened = host.facts.get(f"portals:{step.target}")
        interrupter = EffectInterrupter()
        interrupter.count_calls(host.facts, "effect")
        completed = interrupter.run(lambda: step.do(host), effects)  # noqa: B023
        assert step.probe(host) is completed
        step.do(host)
        assert step.probe(host)
        assert host.facts.get(f"portals:{step.target}") == opened
        effects += 1
    assert effects > 4


def test_what_is_not_ours_stays(contract: Contract, cases: dict[str, str]) -> None:
    contract.foreign_server()
    contract.foreign_subsystem()
    contract.foreign_client()
    assert failed(cases) == []


def test_the_worker_knows_every_step() -> None:
    """By its own imports: an operation with a tag that it does not know cannot be rolled back."""
    tags = sorted({type(step).TAG for step in steps()})
    code = (
        "import zfsilod.engine.worker; from zfsilod.model.record import class_of; "
        f"print(*(class_of(tag).TAG for tag in {tags}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == tags


def test_every_tag_is_listed_with_its_module() -> None:
    """Except for the records that the store itself imports."""
    names = {tag: kind.__module__ for tag, kind in CLASSES.items()}
    modules = {
        tag: name.removeprefix("zfsilod.")
        for tag, name in names.items()
        if name.startswith("zfsilod.") and name not in (records.__name__, host_facts.__name__)
    }
    assert modules == MODULE_OF


def test_the_examples_hold_every_step() -> None:
    walked = {type(action.step) for example in EXAMPLES.values() for action in example.actions}
    assert {type(step) for step in steps()} <= walked


def test_every_step_has_an_example() -> None:
    assert {type(step) for step in steps()} == {
        kind for kind in CLASSES.values() if issubclass(kind, HostStep)
    }


@pytest.mark.parametrize("step", steps(), ids=lambda step: f"{type(step).__name__}")
def test_the_words_of_a_step_are_a_sentence_without_secrets(step: HostStep) -> None:
    for text in (step.fact(), step.describe_do(), step.describe_undo()):
        assert not text.startswith(type(step).__name__)
        assert text[0].islower() or text.startswith(("LUN ", "ACL ")), text
        assert text[-1] not in ".:", text
        assert not any(name in text for name in step.resources().secrets)
        assert not any(f"{field}=" in text for field in step.FIELDS)


@pytest.mark.parametrize("step", steps(), ids=lambda step: f"{type(step).__name__}")
def test_the_resources_of_a_step_are_those_of_its_fields(step: HostStep) -> None:
    resources = step.resources()
    fields = {name: getattr(step, name) for name in step.FIELDS}
    disk = fields.get("disk")
    assert fields.get("dataset", "") in ("", *resources.datasets)
    assert fields.get("path", "") in ("", *resources.paths)
    assert (disk.target if disk else fields.get("target", "")) in ("", *resources.targets)
    assert fields.get("secret", "") in ("", *resources.secrets)
    assert fields.get("uid", UID) in resources.volumes or not isinstance(step, (Zvol, Clone))
    if "initiator" in fields:
        assert resources.initiators == ((fields["target"], fields["initiator"]),)


def make_class(name: str, methods: dict[str, object], **keywords: str) -> type:
    """Make a step class, as a class statement does."""
    return new_class(name, (HostStep,), keywords, lambda namespace: namespace.update(methods))


def complete(**missing: None) -> dict[str, object]:
    """Return the methods that a step needs, without these."""
    methods = {name: lambda *_args: "" for name in HostStep.ABSTRACT}
    return {name: method for name, method in methods.items() if name not in missing}


@pytest.mark.parametrize("name", HostStep.ABSTRACT)
def test_a_step_that_lacks_a_method_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"step Incomplete has no {name}"):
        make_class("Incomplete", complete(**{name: None}), tag="TestIncomplete", part="POOL")
    assert "TestIncomplete" not in CLASSES


def test_a_step_without_a_sandbox_part_is_refused() -> None:
    with pytest.raises(TypeError, match="Incomplete has no sandbox part"):
        make_class("Incomplete", complete(), tag="TestIncomplete")
    assert "TestIncomplete" not in CLASSES


def test_a_guard_refuses_and_undoes_nothing(contract: Contract) -> None:
    guards = [step for step in steps() if isinstance(step, Guard)]
    assert guards
    for step in guards:
        with pytest.raises(ZfsiloError):
            step.do(contract.host)
        step.undo(contract.host)
        assert contract.host.facts.snapshot() == {}  # type: ignore[attr-defined]

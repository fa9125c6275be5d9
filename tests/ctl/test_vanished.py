"""A vanished zvol: the commands that the condition names, typed exactly as it names them."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.ctl.test_volumes import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ctl.shell import Shell

COMMAND = re.compile(r"`zfsiloctl ([^`]+)`")
HOME, ASIDE = "tank/zfsilo/gone", "tank/zfsilo/aside"


@pytest.fixture
def published(ctl: Shell) -> Iterator[Shell]:
    """A published volume, whose name is free again afterwards."""
    ctl.ok("volume create gone 1G")
    ctl.ok("volume publish gone take")
    yield ctl
    facts(ctl).effect(f"zvol:{HOME}", None)
    if ctl("volume show gone").code == 0:
        ctl.ok("volume unpublish gone --all --fence")
        ctl.ok("volume delete gone --record-only --yes")


def facts(ctl: Shell) -> Any:
    return ctl.daemon.front.fixture.host.facts


def rename(ctl: Shell, source: str, target: str, **changes: Any) -> None:
    zvol = facts(ctl).get(f"zvol:{source}") | changes
    facts(ctl).effect(f"zvol:{target}", zvol, instead_of=f"zvol:{source}")


def receive(ctl: Shell) -> None:
    """Replace the zvol by a copy: another guid, and no local marks."""
    zvol = facts(ctl).get(f"zvol:{HOME}")
    block = zvol["properties"]["volblocksize"]
    rename(ctl, HOME, HOME, uid="", guid="4711", properties={"volblocksize": block})


def commands(ctl: Shell) -> list[str]:
    """Return the commands in the condition of the volume, as `volume show` prints it."""
    assert ctl("volume sync --all").code == 1
    (condition,) = ctl("volume show gone --json").json["conditions"]
    return COMMAND.findall(condition)


def is_healthy(ctl: Shell) -> bool:
    ctl("volume sync gone")
    return not ctl("volume show gone --json").json.get("conditions")


def test_a_zvol_that_was_renamed_back(published: Shell) -> None:
    rename(published, HOME, ASIDE)
    adopt, *_delete = commands(published)
    rename(published, ASIDE, HOME)
    assert published.ok(adopt).endswith("already so\n"), "nothing to ask"
    assert is_healthy(published)


def test_a_renamed_zvol_is_put_back_after_a_question(
    published: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename(published, HOME, ASIDE)
    commands(published)
    assert "pass --yes to confirm" in published.fails(2, f"adopt {ASIDE}")
    assert f"rename zvol {ASIDE} to {HOME}" in published.ok(f"adopt {ASIDE} --dry-run")
    for answer, code in (("n\n", 1), ("y\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        ran = published(f"adopt {ASIDE}")
        assert ran.code == code
        assert f"Put {ASIDE} back as the zvol of gone? [y/N] " in ran.err
    assert is_healthy(published)


def test_a_copy_is_put_back_by_the_words_of_the_condition(published: Shell) -> None:
    receive(published)
    adopt, *_delete = commands(published)
    assert adopt == f"adopt {HOME} --accept-copy"
    assert "has the guid 4711" in published.fails(5, f"adopt {HOME} --yes")
    assert published.ok(f"{adopt} --yes") == (
        f"put {HOME} back as the zvol of gone, a copy: take must connect again: done\n"
    )
    assert is_healthy(published)


@pytest.mark.parametrize("way", ["destroyed", "replaced"])
def test_the_record_is_deleted_by_the_words_of_the_condition(
    published: Shell, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "destroyed":
        facts(published).effect(f"zvol:{HOME}", None)
    else:
        receive(published)
    _adopt, unpublish, delete = commands(published)
    published.ok(unpublish)
    left = facts(published).get(f"zvol:{HOME}")
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    ran = published(delete)
    assert "Delete the record of gone, and touch no data? [y/N] " in ran.err
    assert ran.out == "delete the record of gone, and touch no data: done\n"
    assert facts(published).get(f"zvol:{HOME}") == left


def test_a_volume_with_its_zvol_keeps_its_record(published: Shell) -> None:
    published.ok("volume unpublish gone --all")
    error = published.fails(5, "volume delete gone --record-only --yes")
    assert "gone has its zvol" in error

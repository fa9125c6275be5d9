"""The identity of a host is decided once; what differs from it later is named."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from zfsilod import config
from zfsilod.security import kept_identity

if TYPE_CHECKING:
    from pathlib import Path

IQN, NQN = "iqn.2024-01.lab.give:host", "nqn.2014-08.org.nvmexpress:uuid:1"


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configured server called give, whose daemon was started once."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "zfsilod.toml").write_text('[server]\nroot = "tank/zfsilo"\n')
    call(monkeypatch, "give.example.org")
    start(folder)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)


def start(etc: Path, initiator: str = IQN, nqn: str = NQN) -> config.Config:
    """Keep the identity as a start of the daemon does."""
    loaded = config.load(etc, etc.parent)
    present = config.identity(loaded.settings, initiator, nqn)
    kept_identity.keep(etc.parent, present)
    return loaded


def changed(etc: Path, initiator: str = IQN, nqn: str = NQN) -> dict[str, str]:
    changes = config.identity_changes(etc, etc.parent, initiator, nqn)
    assert all(change.command for change in changes)
    return {change.name: change.sentence for change in changes}


def test_the_host_id_is_kept_when_the_host_name_changes(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changed(etc) == {}
    call(monkeypatch, "nas")
    settings = start(etc).settings
    assert (settings.host_id, settings.export.prefix) == ("give", "iqn.2026-01.org.zfsilo:give")
    assert set(changed(etc)) == {"host_name"}
    assert "nas" in changed(etc)["host_name"]
    call(monkeypatch, "give")
    assert changed(etc) == {}


def test_a_configured_host_id_decides_and_is_named_when_it_changes(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(monkeypatch, "nas")
    more = etc / "zfsilod.toml.d"
    more.mkdir()
    (more / "id.toml").write_text('[daemon]\nhost_id = "give"\n')
    assert changed(etc) == {}
    (more / "id.toml").write_text('[daemon]\nhost_id = "nas"\n')
    assert start(etc).daemon.host_id == "nas"
    assert set(changed(etc)) == {"host_id", "iqn_prefix"}
    kept_identity.forget(etc.parent)
    start(etc)
    assert changed(etc) == {}


def test_a_changed_initiator_name_or_nqn_is_named(etc: Path) -> None:
    assert changed(etc, initiator=IQN.upper()) == {}
    assert set(changed(etc, initiator="iqn.2024-01.lab.new:x")) == {"initiator_name"}
    assert set(changed(etc, nqn="")) == {"host_nqn"}
    sentence = changed(etc, nqn="nqn.2014-08.org.nvmexpress:uuid:2")["host_nqn"]
    assert "its volumes are used as before" in sentence, "decision 0014: it is not used"
    assert "zfsiloctl join" not in sentence


def test_a_name_that_did_not_exist_is_kept_later(etc: Path) -> None:
    kept_identity.forget(etc.parent)
    start(etc, initiator="", nqn="")
    assert changed(etc) == {}
    start(etc)
    assert set(changed(etc, initiator="iqn.2024-01.lab.new:x")) == {"initiator_name"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host_id": ""}', '{"x": 1}'])
def test_a_damaged_file_counts_as_none(etc: Path, text: str) -> None:
    (etc.parent / kept_identity.NAME).write_text(text)
    assert config.identity_changes(etc, etc.parent, IQN, NQN) == []
    assert start(etc).daemon.host_id == "give"

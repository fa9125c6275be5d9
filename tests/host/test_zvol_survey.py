"""A survey of zvols answers for what this process did not change."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.doubles import UID
from tests.host.zfs_tool import ZfsTool
from zfsilod.host.real import RealHost
from zfsilod.host.zvol_survey import SURVEYED, SurveyedZfs
from zfsilod.model.host_facts import SnapshotRef

NEW, OLD = "tank/z/new", "tank/z/old"


class SurveyTool(ZfsTool):
    """A pool whose `zfs get -r` lists the children of tank/z, and that makes clones."""

    def __init__(self) -> None:
        super().__init__("tank")
        self.add("tank/z", "filesystem")
        self.add(OLD, "volume", {"zfsilo:uid": UID, "zfsilo:operation": "op"})

    def do_get(self, words: list[str]) -> tuple[int, str, str]:
        if "-r" in words:
            children = [name for name in self.datasets if name.startswith("tank/z/")]
            words = ["-o", "name,property,value,source", ",".join(SURVEYED), "tank/z", *children]
        return super().do_get(words)

    def do_snapshot(self, _words: list[str]) -> tuple[int, str, str]:
        return 0, "", ""

    def do_clone(self, words: list[str]) -> tuple[int, str, str]:
        self.add(words[-1], "volume", {"zfsilo:uid": UID})
        return 0, "", ""

    def __getattr__(self, name: str) -> object:
        """Answer `zfs load-key`, whose name is not one of Python."""
        if name != "do_load-key":
            raise AttributeError(name)
        return self._load_all

    def _load_all(self, _words: list[str]) -> tuple[int, str, str]:
        for properties in self.datasets.values():
            properties["keystatus"] = ("available", "-")
        return 0, "", ""


@pytest.fixture
def tool() -> SurveyTool:
    return SurveyTool()


@pytest.fixture
def zfs(tool: SurveyTool) -> SurveyedZfs:
    return SurveyedZfs(tool, (NEW, OLD))


def test_the_survey_answers_for_many(tool: SurveyTool, zfs: SurveyedZfs) -> None:
    assert zfs.has_zvol(OLD, uid=UID, guid="")
    assert not zfs.exists(NEW)
    assert tool.starts == ["get"]


def test_a_zvol_that_was_created_is_there(zfs: SurveyedZfs) -> None:
    assert not zfs.exists(NEW)
    marks = (("zfsilo:uid", UID),)
    zfs.create_zvol(
        NEW, size_bytes=1 << 20, thin=True, volblocksize=16384, properties=(), marks=marks
    )
    assert zfs.exists(NEW)


def test_a_clone_that_was_made_is_there(zfs: SurveyedZfs) -> None:
    assert not zfs.exists(NEW)
    zfs.run(["zfs", "clone", f"{OLD}@a", NEW], timeout_s=1)
    assert zfs.exists(NEW)


def test_a_zvol_that_was_destroyed_is_gone(tool: SurveyTool, zfs: SurveyedZfs) -> None:
    guid = tool.datasets[OLD]["guid"][0]
    assert zfs.has_zvol(OLD, uid=UID, guid=guid)
    zfs.destroy_zvol(OLD, uid=UID, guid=guid)
    assert not zfs.has_zvol(OLD, uid=UID, guid=guid)


def test_a_property_that_was_set_is_read_again(zfs: SurveyedZfs) -> None:
    assert zfs.properties(OLD, ("sync",))["sync"][0] == "-"
    zfs.set_property(OLD, "sync", "always")
    assert zfs.properties(OLD, ("sync",))["sync"][0] == "always"


def test_a_key_that_was_loaded_is_asked_of_all(tool: SurveyTool) -> None:
    """The clones of an encryption root have its key, and are not named by the command."""
    tool.add(NEW, "volume")
    tool.datasets[OLD]["keystatus"] = ("unavailable", "-")
    zfs = SurveyedZfs(tool, (NEW, OLD))
    assert zfs.properties(OLD, ("keystatus",))["keystatus"][0] == "unavailable"
    zfs.run(["zfs", "load-key", NEW], timeout_s=1)
    assert zfs.properties(OLD, ("keystatus",))["keystatus"][0] == "available"


def test_all_tools_of_a_surveyed_host_are_watched(tool: SurveyTool) -> None:
    """Snapshots and clones change datasets too: their adapter runs its tools by the same runner."""
    unused: Any = None  # secrets and keys
    host = RealHost(unused, unused, tool).surveyed((NEW, OLD))
    assert isinstance(host.zfs, SurveyedZfs)
    host.snapshots.take((SnapshotRef(dataset=OLD, uid=UID),), "c" * 32, ())
    assert host.zfs.run.has_changed(OLD)

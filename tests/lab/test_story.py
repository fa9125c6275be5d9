"""The main job on two real machines, watched by the leak oracle and the secret scan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import oracle
from tests.lab.story import PATH, Story

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair


@pytest.mark.timeout(1200, func_only=True)
def test_the_main_job_leaves_nothing_behind(pair: Pair) -> None:
    before = {machine.name: oracle.facts(machine) for machine in (pair.give, pair.take)}
    story = Story(pair, print)
    for number, step in enumerate(story.steps(), 1):
        print(f"{number}. {step}")
        if number == 3:
            assert oracle.secrets_shown(pair, (story.access.key.splitlines()[1],)) == []
    assert oracle.leaks(pair, before) == []


class TestBadInput:
    """What only real tools can refuse: each gets one sentence, and changes nothing."""

    def refused(self, machine: Machine, *words: str) -> str:
        """Run zfsiloctl, which must fail with one sentence, and return that."""
        before = oracle.facts(machine)
        done = machine.run("zfsiloctl", *words, check=False, timeout_s=120)
        assert done.rc not in (0, 1), done.stderr
        assert done.stderr.startswith("zfsiloctl: ")
        after = oracle.facts(machine)
        for kind in set(before) - set(oracle.SLACK):
            assert after[kind] == before[kind], kind
        return done.stderr

    def test_a_property_that_zfs_refuses(self, give: Machine) -> None:
        said = self.refused(give, "volume", "create", "data", "1G", "-o", "compression=best")
        assert "compression" in said

    def test_a_thick_volume_larger_than_the_pool(self, give: Machine) -> None:
        assert "free" in self.refused(give, "volume", "create", "data", "20G", "--thick")

    def test_a_thin_volume_beyond_the_overcommit(self, give: Machine) -> None:
        assert "overcommit" in self.refused(give, "volume", "create", "data", "200G")

    def test_a_foreign_zvol_of_that_name(self, give: Machine) -> None:
        give.run("zfs", "create", "-s", "-V", "64M", "tank/zfsilo/data")
        said = self.refused(give, "volume", "create", "data", "1G")
        give.run("zfs", "destroy", "tank/zfsilo/data")
        assert "tank/zfsilo/data" in said

    def test_a_root_that_does_not_exist(self, give: Machine) -> None:
        give.put("/etc/zfsilo/zfsilod.toml.d/root.toml", b'[server]\nroot = "tank/gone"\n', 0o644)
        give.run("systemctl", "restart", "zfsilod.service")
        said = self.refused(give, "volume", "create", "data", "1G")
        give.run("rm", "/etc/zfsilo/zfsilod.toml.d/root.toml")
        give.run("systemctl", "restart", "zfsilod.service")
        assert "tank/gone" in said

    def test_a_daemon_that_does_not_run(self, take: Machine) -> None:
        take.run("systemctl", "stop", "zfsilod.socket", "zfsilod.service")
        done = take.run("zfsiloctl", "info", check=False)
        take.run("systemctl", "start", "zfsilod.socket", "zfsilod.service")
        assert done.rc == 9
        assert "systemctl start zfsilod.socket" in done.stderr

    def test_paths_that_cannot_be_mounted_at(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.run("zfsiloctl", "volume", "create", "data", "1G", "--host", "take", timeout_s=120)
        take.run("zfsiloctl", "volume", "connect", "data", timeout_s=120)
        take.run("zfsiloctl", "volume", "stage", "data", timeout_s=120)
        take.sh("mkdir -p /srv/full /srv/empty; touch /srv/full/x; ln -s /srv/empty /srv/link")
        for path in ("srv/data", "/srv/../etc", "/srv/full", "/srv/link", "/proc"):
            assert path.rpartition("/")[2] in self.refused(take, "volume", "mount", "data", path)
        take.run("zfsiloctl", "volume", "mount", "data", "/srv/empty", timeout_s=120)
        said = self.refused(take, "volume", "disconnect", "data")
        assert "unmount" in said
        shown = json.loads(take.run("findmnt", "--json", "/srv/empty").stdout)
        assert shown["filesystems"][0]["target"] == "/srv/empty" != PATH
        for words in (("unmount", "data", "--all"), ("unstage", "data"), ("disconnect", "data")):
            take.run("zfsiloctl", "volume", *words, timeout_s=120)
        take.sh("rm -r /srv/full /srv/link; rmdir /srv/empty")
        self.gone(give)
        assert oracle.leaks(pair) == []

    def gone(self, give: Machine) -> None:
        """Delete the volume; take's own release may be on its way still."""
        give.run("zfsiloctl", "volume", "unpublish", "data", "--all", timeout_s=120)
        give.run("zfsiloctl", "volume", "delete", "data", "--yes", timeout_s=120)

"""The end-to-end scenario with leak check and secret scan, and requests that tools refuse."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.scenario import PATH, Scenario

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair
    from tests.lab.scenario import Transport


@pytest.mark.timeout(1200, func_only=True)
@pytest.mark.parametrize("transport", ["iscsi", pytest.param("nvme", marks=pytest.mark.long)])
def test_the_scenario_leaves_nothing_behind(pair: Pair, transport: Transport) -> None:
    before = {machine.name: leak_check.facts(machine) for machine in (pair.give, pair.take)}
    scenario = Scenario(pair, print, transport)
    for number, step in enumerate(scenario.steps(), 1):
        print(f"{number}. {step}")
        if number == 3:
            key = scenario.access.key.splitlines()[1]
            assert leak_check.secrets_shown(pair, (key,)) == []
    assert leak_check.leaks(pair, before) == []


class TestRefusedRequests:
    """Requests that only real tools refuse: the error is one sentence, and nothing changes."""

    def refused(self, machine: Machine, *words: str) -> str:
        """Run zfsiloctl, assert that it is refused and changes nothing, and return its error."""
        before = leak_check.facts(machine)
        done = machine.run("zfsiloctl", *words, check=False, timeout_s=120)
        assert done.rc not in (0, 1), done.stderr
        assert done.stderr.startswith("zfsiloctl: ")
        after = leak_check.facts(machine)
        for kind in set(before) - set(leak_check.SLACK):
            assert after[kind] == before[kind], kind
        return done.stderr

    def test_a_property_that_zfs_refuses(self, give: Machine) -> None:
        error = self.refused(give, "volume", "create", "data", "1G", "-o", "compression=best")
        assert "compression" in error

    def test_a_thick_volume_larger_than_the_pool(self, give: Machine) -> None:
        assert "free" in self.refused(give, "volume", "create", "data", "20G", "--thick")

    def test_a_thin_volume_beyond_the_overcommit(self, give: Machine) -> None:
        assert "overcommit" in self.refused(give, "volume", "create", "data", "200G")

    def test_a_foreign_zvol_of_that_name(self, give: Machine) -> None:
        give.run("zfs", "create", "-s", "-V", "64M", "tank/zfsilo/data")
        error = self.refused(give, "volume", "create", "data", "1G")
        give.run("zfs", "destroy", "tank/zfsilo/data")
        assert "tank/zfsilo/data" in error

    def test_a_root_that_does_not_exist(self, give: Machine) -> None:
        give.put("/etc/zfsilo/zfsilod.toml.d/root.toml", b'[server]\nroot = "tank/gone"\n', 0o644)
        give.run("systemctl", "restart", "zfsilod.service")
        error = self.refused(give, "volume", "create", "data", "1G")
        give.run("rm", "/etc/zfsilo/zfsilod.toml.d/root.toml")
        give.run("systemctl", "restart", "zfsilod.service")
        assert "tank/gone" in error

    def test_a_daemon_that_does_not_run(self, take: Machine) -> None:
        take.run("systemctl", "stop", "zfsilod.socket", "zfsilod.service")
        done = take.run("zfsiloctl", "info", check=False)
        take.run("systemctl", "start", "zfsilod.socket", "zfsilod.service")
        assert done.rc == 9
        assert "systemctl start zfsilod.socket" in done.stderr

    def test_invalid_mount_points(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.run("zfsiloctl", "volume", "create", "data", "1G", "--host", "take", timeout_s=120)
        take.run("zfsiloctl", "volume", "connect", "data", timeout_s=120)
        take.run("zfsiloctl", "volume", "stage", "data", timeout_s=120)
        take.sh("mkdir -p /srv/full /srv/empty; touch /srv/full/x; ln -s /srv/empty /srv/link")
        for path in ("srv/data", "/srv/../etc", "/srv/full", "/srv/link", "/proc"):
            assert path.rpartition("/")[2] in self.refused(take, "volume", "mount", "data", path)
        take.run("zfsiloctl", "volume", "mount", "data", "/srv/empty", timeout_s=120)
        assert "unmount" in self.refused(take, "volume", "disconnect", "data")
        shown = json.loads(take.run("findmnt", "--json", "/srv/empty").stdout)
        assert shown["filesystems"][0]["target"] == "/srv/empty" != PATH
        for words in (("unmount", "data", "--all"), ("unstage", "data"), ("disconnect", "data")):
            take.run("zfsiloctl", "volume", *words, timeout_s=120)
        take.sh("rm -r /srv/full /srv/link; rmdir /srv/empty")
        give.run("zfsiloctl", "volume", "unpublish", "data", "--all", timeout_s=120)
        give.run("zfsiloctl", "volume", "delete", "data", "--yes", timeout_s=120)
        assert leak_check.leaks(pair) == []

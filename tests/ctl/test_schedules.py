"""`zfsiloctl schedule` with a real daemon."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING

from zfsilod.model.policies import SnapshotPolicy
from zfsilod.model.records import Snapshot

if TYPE_CHECKING:
    import pytest

    from tests.ctl.shell import Shell

DAY_S = 86400


def a_day_later(ctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock by which snapshots get their names."""
    context = ctl.daemon.front.service.context
    present = context.clock.now()
    monkeypatch.setattr(context, "clock", SimpleNamespace(now=lambda: present + DAY_S))


def test_the_life_of_a_schedule(ctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    ctl.ok("volume create data 1G -l app=db")
    ctl.ok("volume create log 1G -l app=db")
    assert ctl.ok("schedule list -q") == ""
    created = "schedule create nightly --calendar daily --keep '24x1h 7x1d' -l app=db --delay 60"
    assert (
        ctl.ok(f"{created} --dry-run")
        == "would create policy nightly, with no change to the host\n"
    )
    assert ctl.ok(created) == "create policy nightly: done\n"
    assert ctl.ok(created) == "create policy nightly: already so\n"
    assert ctl.ok("schedule list -q") == "nightly\n"
    assert re.search(r"nightly +daily +24x1h 7x1d +app=db +2 +never", ctl.ok("schedule list"))
    planned = ctl.ok("schedule run nightly --dry-run")
    assert planned.startswith("would snapshot data as nightly-20")
    assert planned.count("take snapshot") == 2
    ran = ctl.ok("schedule run nightly")
    assert re.fullmatch(
        r"snapshot data as (nightly-\d{8}t\d{6}z)-data: done\nsnapshot log as \1-log: done\n", ran
    )
    name = ran.split()[3].rstrip(":")
    assert re.search(r"Policy: +nightly\n", ctl.ok(f"snapshot show {name}"))
    shown = ctl.ok("schedule show nightly")
    for line in (
        r"Calendar: +daily, up to 60 s later",
        r"Keep: +24x1h 7x1d",
        r"Snapshots: +one of each volume",
        r"Volumes: +data, log",
        r"Timer: +zfsilo-snapshot@nightly.timer",
        r"Last success: +20.* ago",
    ):
        assert re.search(line, shown), shown
    assert "Failure" not in shown
    assert ctl.ok("schedule update nightly --keep 2x1d --group -l tier=1 --delay 0") == (
        "update policy nightly: done\nnightly selects no volume\n"
    )
    policy = ctl("schedule show nightly --json").json
    assert (policy["grid"], policy["grouped"]) == ("2x1d", True)
    assert policy["selector"] == {"app": "db", "tier": "1"}
    assert policy["max_delay_seconds"] == 0
    assert ctl.ok("schedule run nightly") == "nightly selects no volume\n"
    ctl.ok("schedule update nightly --single -l tier-")
    a_day_later(ctl, monkeypatch)  # the names of snapshots have seconds
    assert ctl("schedule run nightly --json").json["policy"]["volumes"] == [
        "volumes/data",
        "volumes/log",
    ]
    assert (
        ctl.ok("schedule delete nightly") == "delete policy nightly, and keep its snapshots: done\n"
    )
    assert len(ctl.ok("snapshot list -q").splitlines()) == 4


def test_create_or_update(ctl: Shell) -> None:
    """What NixOS runs: the policy stays the one that took its snapshots."""
    ctl.ok("volume create mail 1G -l app=mail")
    created = "schedule create x --calendar daily --keep 7x1d -l app=mail --group --delay 60"
    assert ctl.ok(f"{created} --update") == "create policy x: done\n"
    assert ctl.ok(f"{created} --update") == "create policy x: already so\n"
    ctl.ok("schedule run x")
    changed = "schedule create x --calendar hourly --keep 1x1h"
    assert "exists with another calendar, grid" in ctl.fails(4, changed)
    assert ctl.ok(f"{changed} --update --dry-run") == (
        "would update policy x, with no change to the host\n"
    )
    assert ctl.ok(f"{changed} --update") == "update policy x: done\n"
    policy = ctl("schedule show x --json").json
    assert (policy["calendar"], policy["grid"]) == ("hourly", "1x1h")
    assert (policy["selector"], policy["grouped"], policy["max_delay_seconds"]) == ({}, False, 0)
    front = ctl.daemon.front
    taken = front.read(lambda txn: next(one for one in txn.scan(Snapshot) if one.policy == "x"))
    assert taken.policy_uid == front.read(lambda txn: txn.get(SnapshotPolicy, "x")).uid
    assert "invalid calendar" in ctl.fails(2, f"{changed} --update --calendar never")
    assert ctl("schedule show x --json").json["calendar"] == "hourly"
    ctl.ok("schedule delete x")


def test_the_last_label_is_not_removed(ctl: Shell) -> None:
    ctl.ok("schedule create x --calendar daily --keep 7x1d -l app=none -l tier=1")
    assert ctl.ok("schedule update x -l tier-") == ("update policy x: done\nx selects no volume\n")
    assert "would select every volume" in ctl.fails(2, "schedule update x -l app-")
    assert ctl("schedule show x --json").json["selector"] == {"app": "none"}
    ctl.ok("schedule update x -l app- -l app2=none")
    ctl.ok("schedule create x --calendar daily --keep 7x1d --update")
    ctl.ok("schedule update x -l app-")  # it selects every volume already
    ctl.ok("schedule delete x")


def test_what_is_refused(ctl: Shell) -> None:
    calendar = "schedule create x --calendar whenever --keep 7x1d"
    assert "systemd-analyze calendar" in ctl.fails(2, calendar)
    assert "24x1h 7x1d 4x1w 12x1mon" in ctl.fails(2, "schedule create x --calendar daily --keep 7")
    assert "--keep" in ctl.fails(2, "schedule create x --calendar daily")
    ctl.ok("schedule create x --calendar daily --keep 7x1d")
    assert "nothing to change" in ctl.fails(2, "schedule update x")
    assert "no snapshot policy" in ctl.fails(3, "schedule run none")


def test_a_failed_run(ctl: Shell) -> None:
    ctl.ok("volume create fails 1G -l app=fails")
    ctl.ok("schedule create failing --calendar daily --keep 7x1d -l app=fails")
    launcher = ctl.daemon.front.fixture.launcher
    launcher.refuses = True
    said = ctl.fails(9, "schedule run failing")
    assert "policy failing could not take 1 of its snapshots: fails: " in said
    launcher.refuses = False
    assert re.search(r"Failure: +fails: ", ctl.ok("schedule show failing"))
    status = ctl.ok("status")
    assert "policy failing could not take a snapshot: fails: " in status
    assert "try: zfsiloctl schedule show failing" in status
    ctl.ok("schedule run failing")
    assert "failing" not in ctl.ok("status")

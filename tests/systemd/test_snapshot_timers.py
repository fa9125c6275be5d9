"""The timers of snapshot policies under a real systemd: run, change, restart, reboot, restore."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.systemd.simulated import ctl, delete_volumes, simulated_host, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

TIMER, SERVICE = "zfsilo-snapshot@nightly.timer", "zfsilo-snapshot@nightly.service"
STAMP = f"var/lib/systemd/timers/stamp-{TIMER}"
MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
START = ("StartTransientUnit", "ssa(sv)a(sa(sv))")
SANDBOX = re.compile(
    r"^(?:CapabilityBoundingSet|NoNewPrivileges|Lock|Memory|Private|Proc|Protect|Restrict|SystemCall)"
    r"\w*=.*",
    re.M,
)
# Prints why these are no calendars, as the daemon asks on a real host.
CALENDARS = """
import sys
sys.path.insert(0, "/usr/lib/zfsilo")
from zfsilod.host.real import real_host
print(*map(real_host(None, None).calendar_problem, ("daily", "often", "2020-01-01")), sep="|")
"""
CREATE = ("schedule", "create", "nightly", "--keep", "7x1d", "--calendar")


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine whose zfsilod has a simulated host."""
    with simulated_host() as machine:
        yield machine


@pytest.fixture(autouse=True)
def nothing_is_left(sd: SystemdHost) -> Iterator[None]:
    """Delete the policies, snapshots and volumes after each test, and the last run's time."""
    ctl(sd, "volume", "create", "data", "1G")
    yield
    for policy in ctl(sd, "schedule", "list", "-q").stdout.split():
        ctl(sd, "schedule", "delete", policy)
    wait_until(lambda: not timers(sd), "timers are stopped")
    sd.run("systemctl", "stop", SERVICE)  # a run may have begun before its policy was deleted
    sd.run("systemctl", "reset-failed", SERVICE, check=False)
    for snapshot in snapshots(sd):
        ctl(sd, "snapshot", "delete", snapshot)
    delete_volumes(sd)
    (sd.root / STAMP).unlink(missing_ok=True)


def timers(sd: SystemdHost) -> dict[str, str]:
    """Return the descriptions of the timers of policies."""
    argv = ("systemctl", "list-units", "--no-legend", "--plain", "zfsilo-snapshot@*.timer")
    rows = (line.split(None, 4) for line in sd.run(*argv).stdout.splitlines())
    return {row[0]: row[4] for row in rows}


def is_timed(sd: SystemdHost, calendar: str) -> bool:
    """Tell whether the timer has a calendar."""
    return calendar in timers(sd).get(TIMER, "")


def snapshots(sd: SystemdHost) -> list[str]:
    return ctl(sd, "snapshot", "list", "-q").stdout.split()


def show(sd: SystemdHost, unit: str, name: str) -> str:
    return sd.run("systemctl", "show", "-P", name, unit).stdout.strip()


def test_a_timer_takes_snapshots(sd: SystemdHost) -> None:
    ctl(sd, *CREATE, "*:*:0/2")
    wait_until(lambda: len(snapshots(sd)) >= 2, "the timer runs the policy")
    assert all(name.startswith("nightly-20") and name.endswith("-data") for name in snapshots(sd))
    assert show(sd, SERVICE, "Result") == "success"
    assert TIMER in sd.run("systemctl", "list-timers", "--all").stdout
    policy = json.loads(ctl(sd, "schedule", "show", "nightly", "--json").stdout)
    assert policy["success_time"]


def test_a_timer_follows_its_policy(sd: SystemdHost) -> None:
    ctl(sd, *CREATE, "daily", "--delay", "60")
    wait_until(lambda: TIMER in timers(sd), "the timer is started")
    assert show(sd, TIMER, "Persistent") == "yes"
    assert show(sd, TIMER, "RandomizedDelayUSec") == "1min"
    assert "OnCalendar=*-*-* 00:00:00" in show(sd, TIMER, "TimersCalendar")
    for _change in range(5):  # each stops the timer and starts another one of its name
        for calendar in ("weekly", "Mon..Fri 02:30"):
            ctl(sd, "schedule", "update", "nightly", "--calendar", calendar)
            wait_until(partial(is_timed, sd, calendar), calendar)
    assert "OnCalendar=Mon..Fri *-*-* 02:30:00" in show(sd, TIMER, "TimersCalendar")
    ctl(sd, "schedule", "delete", "nightly")
    wait_until(lambda: not timers(sd), "the timer is stopped")


def test_a_restart_of_the_daemon_keeps_the_timer(sd: SystemdHost) -> None:
    ctl(sd, *CREATE, "daily")
    wait_until(lambda: TIMER in timers(sd), "the timer is started")
    entered = show(sd, TIMER, "ActiveEnterTimestampMonotonic")
    sd.run("systemctl", "restart", "zfsilod.service")
    ctl(sd, "schedule", "list")
    assert show(sd, TIMER, "ActiveEnterTimestampMonotonic") == entered
    sd.run("systemctl", "stop", TIMER)  # by hand
    sd.run("systemctl", "restart", "zfsilod.service")
    wait_until(lambda: TIMER in timers(sd), "the daemon starts it again")


def test_a_run_that_was_missed_follows_after_the_boot(sd: SystemdHost) -> None:
    ctl(sd, *CREATE, "daily")
    wait_until(lambda: TIMER in timers(sd), "the timer is started")
    assert snapshots(sd) == []
    sd.power_cut()
    sd.run("touch", "-d", "2 days ago", f"/{STAMP}")  # as after two days without power
    sd.run("systemctl", "restart", "zfsilod.service")
    wait_until(lambda: TIMER in timers(sd), "the timer is started again")
    wait_until(lambda: len(snapshots(sd)) == 1, "the run is made up for")


def test_a_timer_without_a_policy_is_stopped(sd: SystemdHost) -> None:
    """As after a backup of the store was restored that does not have the policy."""
    timer = "zfsilo-snapshot@gone.timer"
    calendar = ("TimersCalendar", "a(ss)", "1", "OnCalendar", "daily")
    sd.run("busctl", "call", *MANAGER, *START, timer, "replace", "1", *calendar, "0")
    assert len(timers(sd)) == 1
    sd.run("systemctl", "restart", "zfsilod.service")
    wait_until(lambda: not timers(sd), "the timer is stopped")


def test_a_failed_run_fails_its_unit(sd: SystemdHost) -> None:
    ctl(sd, *CREATE, "daily")
    ctl(sd, "schedule", "delete", "nightly")
    assert sd.run("systemctl", "start", SERVICE, check=False).rc != 0
    assert show(sd, SERVICE, "Result") == "exit-code"
    sd.run("systemctl", "reset-failed", SERVICE)


def test_the_sandbox_of_the_daemon_lets_it_check_a_calendar(sd: SystemdHost) -> None:
    unit = (sd.root / "usr/lib/systemd/system/zfsilod.service").read_text()
    settings = SANDBOX.findall(unit)
    assert len(settings) > 20
    options = [word for setting in settings for word in ("-p", setting)]
    argv = ("systemd-run", "--wait", "--pipe", *options, "/usr/bin/python3", "-c", CALENDARS)
    assert sd.run(*argv).stdout == "|systemd cannot parse it|it is never due\n"

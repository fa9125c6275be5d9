"""`volume replicate`, and what both servers show of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.ctl.shell import running
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.ctl.shell import Ran, Shell


@pytest.fixture
def peer(
    ctl: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Ran]]:
    """Another server, which this one has joined as its peer: runs zfsiloctl there."""
    with running(tmp_path / "peer") as daemon:
        join = daemon.join_file("replica", "take")
        joined = ctl.ok(f"join {join} --as far")
        assert "as its peer, to replicate volumes to it; saved in" in joined
        context = ctl.daemon.front.service.context
        former = context.servers
        servers = StorageServers({"far": daemon.front.certified("replica", "take")}.get)
        context.servers = servers

        def run(line: str) -> Ran:
            with monkeypatch.context() as there:
                for name, value in daemon.environment.items():
                    there.setenv(name, value)
                return ctl(line)

        yield run
        ctl.daemon.wait(servers.close())
        context.servers = former


def test_a_volume_that_is_replicated(ctl: Shell, peer: Callable[[str], Ran]) -> None:
    ctl.ok("volume create sent 1G")
    assert "invalid rate 1024" in ctl.fails(2, "volume replicate sent --to far --rate 1K")
    assert "is not configured" in ctl.fails(3, "volume replicate sent --to nowhere")
    plan = ctl.ok("volume replicate sent --to far --dry-run")
    assert "  send the whole snapshot replica-sent-far-1 of sent to far\n" in plan
    assert ctl.ok("volume replicate sent --to far") == "replicate sent to far: done\n"
    assert "Replicated to:  far (as of 20" in ctl.ok("volume show sent")
    shown = peer("volume show sent").out
    assert "healthy, a replica" in shown
    assert "Replica of:" in shown
    assert "is a replica that take sends" in peer("volume publish sent take").err
    plan = ctl.ok("volume replicate sent --to far --dry-run")
    assert "  send what changed until snapshot replica-sent-far-2 of sent to far\n" in plan
    assert "release hold and bookmark of snapshot" in plan
    assert "--end first" in ctl.fails(5, "volume delete sent --yes")
    assert ctl.ok("volume replicate sent --to far --end") == (
        "end the replication of sent to far: done\n"
    )
    ctl.ok("volume delete sent --yes")
    assert peer("volume delete sent --yes").out == "delete replica sent and its data: done\n"


def test_a_failover(ctl: Shell, peer: Callable[[str], Ran]) -> None:
    ctl.ok("volume create moved 1G")
    ctl.ok("volume replicate moved --to far")
    assert "Asks:           far" in ctl.ok("volume show moved")
    assert "--primary-is-off" in peer("volume promote moved --yes").err
    asked = peer("volume promote moved --primary-is-off")
    assert "pass --yes to confirm" in asked.err
    plan = peer("volume promote moved --primary-is-off --dry-run").out
    assert "would promote replica moved, as of 20" in plan
    assert "let zvol tank/zfsilo/moved inherit property readonly" in plan
    promoted = peer("volume promote moved --primary-is-off --yes").out
    assert re.fullmatch(r"promote replica moved, as of \S+Z: done\n", promoted)
    assert "already so" in peer("volume promote moved --yes").out
    assert "was promoted" in ctl.fails(5, "volume replicate moved --to far")
    put_aside = ctl.ok("volume demote moved --to far --aside --yes")
    assert re.match(r"put the data of moved aside as moved-aside-[0-9-]+: far serves it", put_aside)
    assert "a replica" in ctl.ok("volume show moved")
    (aside,) = [n for n in ctl.ok("volume list -q").split() if n.startswith("moved-aside-")]
    assert "the data of moved" in ctl.ok(f"volume show {aside}")
    assert "is a replica" in ctl.fails(5, "volume demote moved --to far --yes")


def test_the_life_of_a_policy(ctl: Shell, peer: Callable[[str], Ran]) -> None:
    ctl.ok("volume create mail 1G -l app=mail")
    ctl.ok("volume create disk 1G")
    assert ctl.ok("replication list -q") == ""
    created = "replication create hourly --to far --calendar hourly -l app=mail --volume disk"
    assert "is not configured" in ctl.fails(3, "replication create x --to no --calendar daily")
    assert "invalid rate 1024" in ctl.fails(2, f"{created} --rate 1K")
    assert ctl.ok(f"{created} --rate 20M --delay 60") == "create replication policy hourly: done\n"
    listed = ctl.ok("replication list")
    assert re.search(r"hourly +far +hourly +app=mail, disk +2 +never", listed), listed
    planned = ctl.ok("replication run hourly --dry-run")
    assert planned.count("would replicate ") == 2
    assert ctl.ok("replication run hourly") == (
        "replicate disk to far: done\nreplicate mail to far: done\n"
    )
    assert "healthy, a replica" in peer("volume show mail").out
    shown = ctl.ok("replication show hourly")
    for line in (
        r"To: +far",
        r"Calendar: +hourly, up to 60 s later",
        r"Selects: +app=mail, disk",
        r"Volumes: +disk, mail",
        r"Rate: +at most 20.0 MiB a second",
        r"Timer: +zfsilo-replicate@hourly.timer",
        r"Last success: +20.* ago",
    ):
        assert re.search(line, shown), shown
    update = "replication update hourly --rate 0 --volume disk- -l app=none"
    assert ctl.ok(update) == ("update replication policy hourly: done\nhourly selects no volume\n")
    policy = ctl("replication show hourly --json").json
    assert policy["selector"] == {"app": "none"}
    assert (policy["volumes"], policy["bytes_per_second"]) == ([], "0")
    assert ctl.ok("replication run hourly") == "hourly selects no volume\n"
    assert "nothing to change" in ctl.fails(2, "replication update hourly")
    ctl.ok("replication update hourly --volume lost")
    said = ctl.fails(9, "replication run hourly")
    assert "policy hourly could not replicate 1 of its volumes: lost: " in said
    status = ctl.ok("status")
    assert "replication policy hourly could not send a volume: lost: " in status
    assert "try: zfsiloctl replication show hourly" in status
    assert "would select every" in ctl.fails(2, "replication update hourly --volume lost- -l app-")
    assert ctl("replication show hourly --json").json["volumes"] == ["volumes/lost"]
    changed = "replication create hourly --to far --calendar daily --volume mail --update"
    assert ctl.ok(changed) == "update replication policy hourly: done\n"
    policy = ctl("replication show hourly --json").json
    assert (policy["volumes"], policy["selector"]) == (["volumes/mail"], {})
    assert (policy["calendar"], policy["max_delay_seconds"]) == ("daily", 0)
    assert ctl.ok("replication delete hourly") == (
        "delete replication policy hourly, and keep its replicas: done\n"
    )
    assert "hourly" not in ctl.ok("status")
    for name in ("mail", "disk"):
        assert "--end first" in ctl.fails(5, f"volume delete {name} --yes")
        ctl.ok(f"volume replicate {name} --to far --end")
        ctl.ok(f"volume delete {name} --yes")

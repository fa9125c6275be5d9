"""`volume replicate`, and what both servers show of it."""

from __future__ import annotations

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

"""`zfsiloctl rotate-secrets` for one volume and for all published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.ctl.shell import Shell


def test_all_published_volumes(ctl: Shell) -> None:
    assert ctl.ok("rotate-secrets") == "nothing is published\n"
    assert ctl.ok("rotate-secrets -q") == ""
    assert ctl("rotate-secrets --json").json == {"operations": []}
    for name in ("one", "two"):
        ctl.ok(f"volume create {name} 1G")
        ctl.ok(f"volume publish {name} take")
    titles = ["new secrets for one on take", "new secrets for two on take"]
    assert ctl.ok("rotate-secrets").splitlines() == [f"{title}: done" for title in titles]
    for how in ("", " --dry-run"):
        operations = ctl(f"rotate-secrets --json{how}").json["operations"]
        assert [operation["title"] for operation in operations] == titles
    (first, _second) = ctl("rotate-secrets --json --no-wait").json["operations"]
    assert first["name"].startswith("operations/")
    ctl.daemon.calm()


def test_one_volume(ctl: Shell) -> None:
    ctl.ok("volume create three 1G")
    ctl.ok("volume publish three take")
    assert ctl.ok("rotate-secrets three take") == "new secrets for three on take: done\n"
    assert ctl("rotate-secrets three --json").json["operation"]["state"] == "OPERATION_STATE_DONE"

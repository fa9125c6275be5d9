"""`zfsiloctl rotate-secrets`, of one volume and of all that are published."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.ctl.shell import Shell


def test_of_all_that_is_published(ctl: Shell) -> None:
    assert ctl.ok("rotate-secrets") == "nothing is published: there are no secrets\n"
    assert ctl.ok("rotate-secrets -q") == ""
    assert ctl("rotate-secrets --json").json == {"operations": []}
    for name in ("one", "two"):
        ctl.ok(f"volume create {name} 1G")
        ctl.ok(f"volume publish {name} take")
    titles = ["new secrets for one on take", "new secrets for two on take"]
    assert ctl.ok("rotate-secrets").splitlines() == [f"{each}: done" for each in titles]
    for how in ("", " --dry-run"):
        found = ctl(f"rotate-secrets --json{how}").json["operations"]
        assert [each["title"] for each in found] == titles
    (first, _second) = ctl("rotate-secrets --json --no-wait").json["operations"]
    assert first["name"].startswith("operations/")
    ctl.daemon.calm()


def test_of_one_volume(ctl: Shell) -> None:
    ctl.ok("volume create three 1G")
    ctl.ok("volume publish three take")
    assert ctl.ok("rotate-secrets three take") == "new secrets for three on take: done\n"
    assert ctl("rotate-secrets three --json").json["operation"]["state"] == "OPERATION_STATE_DONE"

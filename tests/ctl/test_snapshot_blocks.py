"""`zfsiloctl snapshot blocks` with a real daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.ctl.shell import Shell

BLOCK = 16384


def write(ctl: Shell, blocks: dict[str, str]) -> None:
    """Set the blocks of the volume that are in use."""
    facts = ctl.daemon.front.fixture.host.facts
    facts.effect(f"blocks:{facts.get('zvol:tank/zfsilo/data')['uid']}", blocks)


def test_the_blocks_of_a_snapshot(ctl: Shell) -> None:
    ctl.ok("volume create data 1G")
    write(ctl, {"1": "a", "2": "b", "8": "c"})
    ctl.ok("snapshot create data one")
    write(ctl, {"1": "a", "2": "new"})
    ctl.ok("snapshot create data two")
    assert ctl.ok("snapshot blocks one") == (
        f"{BLOCK} {2 * BLOCK} data\n{8 * BLOCK} {BLOCK} data\n"
    )
    changed = [(2 * BLOCK, BLOCK, False), (8 * BLOCK, BLOCK, True)]
    listed = "".join(
        f"{offset} {length} {'zero' if zero else 'data'}\n" for offset, length, zero in changed
    )
    assert ctl.ok("snapshot blocks two --since one") == listed
    text = ctl.ok("snapshot blocks two --since one --json").replace("}\n{", "},{")
    first, second = json.loads(f"[{text}]")
    assert int(first["size_bytes"]) == int(second["size_bytes"]) == 1 << 30
    assert [shown(one) for one in second["ranges"]] == changed


def shown(one: dict[str, Any]) -> tuple[int, int, bool]:
    return int(one["offset"]), int(one["length"]), bool(one.get("zero"))


def test_what_is_refused(ctl: Shell) -> None:
    ctl.ok("volume create data 1G")
    ctl.ok("snapshot create data one")
    refused = ctl("snapshot blocks one --since one")
    assert refused.code != 0
    assert "not older" in refused.err
    assert refused.out == ""
    assert ctl("snapshot blocks none").code != 0

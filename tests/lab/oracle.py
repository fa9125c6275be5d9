"""The leak oracle: what is on the machines beyond what the records say; and the secret scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

COLLECT = Path(__file__).with_name("collect.py")
PLACE = "/root/collect.py"
# Connections come and go; what grows with every operation passes this soon.
SLACK = {"descriptors": 12, "tasks": 12}
IDLE = ("unit", "loop", "process", "snapshot")


def facts(machine: Machine) -> dict[str, Any]:
    """Return what is on a machine, by kind."""
    machine.put(PLACE, COLLECT.read_bytes(), 0o600)
    found: dict[str, Any] = json.loads(machine.run("python3", PLACE, "facts", timeout_s=120).stdout)
    return found


def records(machine: Machine) -> list[dict[str, Any]]:
    """Return the volumes as the daemon of a machine knows them."""
    listed = machine.run("zfsiloctl", "volume", "list", "--json", timeout_s=120).stdout
    volumes: list[dict[str, Any]] = json.loads(listed)["volumes"]
    return volumes


def expected(volumes: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return what the records of a machine account for, by kind."""
    served = [each for each in volumes if each.get("dataset")]
    published = [each for each in served if each.get("publications")]
    used = [each["attachment"] for each in volumes if each.get("attachment")]
    paths = [mount["path"] for each in used for mount in each.get("mounts", [])]
    staged = [each["staging_path"] for each in used if each.get("staging_path")]
    return {
        "zvol": {each["dataset"] for each in served},
        "target": {each["uid"] for each in published},
        "lun": {each["uid"] for each in published},
        "backstore": {f"zfsilo-{each['uid']}" for each in published},
        "acl": {pub["initiator"] for each in published for pub in each["publications"]},
        "session": {each["disk"]["serial"] for each in used},
        "node": {each["disk"]["serial"] for each in used},
        "mount": {*paths, *staged},
        "staging": {path.rpartition("/")[2] for path in staged},
    }


def leaks(pair: Pair, before: dict[str, dict[str, Any]] | None = None) -> list[str]:
    """Return a line for everything that no record accounts for, on both machines."""
    lines = []
    for machine in (pair.give, pair.take):
        found, owed = facts(machine), expected(records(machine))
        for kind, names in owed.items():
            ours = {name.rpartition(":")[2] if name.startswith("iqn.") else name for name in names}
            for name in found[kind]:
                if name not in names and name.rpartition(":")[2] not in ours:
                    lines.append(f"{machine.name}: {kind} {name}")
        lines += [f"{machine.name}: {kind} {name}" for kind in IDLE for name in found[kind]]
        for kind, slack in SLACK.items():
            known = before[machine.name][kind] if before else found[kind]
            if found[kind] > known + slack:
                lines.append(f"{machine.name}: zfsilod has {found[kind]} {kind}, had {known}")
    return lines


def secrets_shown(pair: Pair, further: tuple[str, ...] = ()) -> list[str]:
    """Return the places on both machines that show a CHAP secret in use, or a further one."""
    lines = []
    for machine in (pair.give, pair.take):
        machine.put(PLACE, COLLECT.read_bytes(), 0o600)
        answer = machine.run(
            "python3", PLACE, "secrets", input="\n".join(further), timeout_s=180
        ).stdout
        lines += [f"{machine.name}: {place}" for place in json.loads(answer)["shown"]]
    return lines

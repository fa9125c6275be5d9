"""Leak check: objects on the machines that no record accounts for, and secrets that show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

COLLECT = Path(__file__).with_name("collect.py")
COLLECT_PATH = "/root/collect.py"
# Connections vary; a leak per operation soon exceeds this.
SLACK = {"descriptors": 12, "tasks": 12}
# A restarted zfsilod claims its pools: a unit that runs is no leak, one that failed is.
IDLE = """
until [ -z "$(systemctl list-units --state=activating,active,deactivating --plain --no-legend \
    'zfsilo-op-*.service')" ]
do sleep 0.2; done
"""
IDLE_S = 120
NVME = "TRANSPORT_NVME"
PORTS = {"31232"}  # the first number of zfsilo: zfsilod/host/nvmet_ports.py
# Kinds of which an idle machine has none.
TRANSIENT = ("unit", "loop", "process", "snapshot")


def facts(machine: Machine) -> dict[str, Any]:
    """Return the objects on a machine that zfsilo may have created, by kind."""
    machine.put(COLLECT_PATH, COLLECT.read_bytes(), 0o600)
    collected = machine.run("python3", COLLECT_PATH, "facts", timeout_s=120).stdout
    objects: dict[str, Any] = json.loads(collected)
    return objects


def records(machine: Machine) -> list[dict[str, Any]]:
    """Return the volumes in the daemon's records of a machine."""
    listed = machine.run("zfsiloctl", "volume", "list", "--json", timeout_s=120).stdout
    volumes: list[dict[str, Any]] = json.loads(listed)["volumes"]
    return volumes


def expected(volumes: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the objects that the records of a machine account for, by kind."""
    served = [volume for volume in volumes if volume.get("dataset")]
    published = [volume for volume in served if volume.get("publications")]
    publications = [item for volume in published for item in volume["publications"]]
    attachments = [volume["attachment"] for volume in volumes if volume.get("attachment")]
    paths = [mount["path"] for item in attachments for mount in item.get("mounts", [])]
    staged = [item["staging_path"] for item in attachments if item.get("staging_path")]
    serials = {item["disk"]["serial"] for item in attachments}
    return {
        "zvol": {volume["dataset"] for volume in served},
        "target": {volume["uid"] for volume in published},
        "lun": {volume["uid"] for volume in published},
        "backstore": {f"zfsilo-{volume['uid']}" for volume in published},
        "acl": {publication["initiator"] for publication in publications},
        "port": PORTS if any(one["transport"] == NVME for one in publications) else set(),
        "session": serials,
        "psk": {volume["uid"] for volume in published if volume["publications"][0].get("tls")}
        | {item["disk"]["serial"] for item in attachments if item.get("tls")},
        "node": serials,
        "mount": {*paths, *staged},
        "staging": {path.rpartition("/")[2] for path in staged},
    }


def leaks(pair: Pair, before: dict[str, dict[str, Any]] | None = None) -> list[str]:
    """Return one line per object that no record accounts for, on both machines.

    With `before`, the descriptors and tasks of zfsilod are compared with these facts, too.
    """
    lines = []
    for machine in (pair.give, pair.take):
        machine.sh(IDLE, timeout_s=IDLE_S)
        objects = facts(machine)
        for kind, names in expected(records(machine)).items():
            serials = {
                name.rpartition(":")[2] if name[:4] in ("iqn.", "nqn.") else name for name in names
            }
            for name in objects[kind]:
                if name not in names and name.rpartition(":")[2] not in serials:
                    lines.append(f"{machine.name}: {kind} {name}")
        lines += [f"{machine.name}: {kind} {name}" for kind in TRANSIENT for name in objects[kind]]
        for kind, slack in SLACK.items():
            number = before[machine.name][kind] if before else objects[kind]
            if objects[kind] > number + slack:
                lines.append(f"{machine.name}: zfsilod has {objects[kind]} {kind}, had {number}")
    return lines


def secrets_shown(pair: Pair, additional: tuple[str, ...] = ()) -> list[str]:
    """Return the places on both machines that show a CHAP secret or an additional one."""
    lines = []
    for machine in (pair.give, pair.take):
        machine.put(COLLECT_PATH, COLLECT.read_bytes(), 0o600)
        command = ("python3", COLLECT_PATH, "secrets")
        answer = machine.run(*command, input="\n".join(additional), timeout_s=180).stdout
        lines += [f"{machine.name}: {place}" for place in json.loads(answer)["shown"]]
    return lines

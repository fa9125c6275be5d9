"""Entry point of the step contract inside a machine: prints one line of JSON per case.

test_contract.py copies it to the machines and runs it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.examples import (
    NVME_PUBLICATION,
    NVME_TARGET,
    PUBLICATION,
    SNAPSHOT_SET,
    TARGET,
    TLS_PUBLICATION,
    UID,
)
from tests.lab.contract import DATASET, Contract, EffectInterrupter, steps_of
from tests.lab.contract_examples import (
    AFTER_SERVER,
    CLIENT,
    NVME_ROTATED,
    ROTATED,
    SERVER,
    secrets,
)
from zfsilod.engine.steps.access import NoSession
from zfsilod.engine.steps.zfs import Zvol, ZvolSize
from zfsilod.host import nvme_paths
from zfsilod.host.configfs import Configfs
from zfsilod.host.fake.keys import MadeUpKeys
from zfsilod.host.io_limits import UNIT_GROUP
from zfsilod.host.nvme_disks import NvmeController
from zfsilod.host.nvme_keyring import KeyCalls, NvmeKeyring
from zfsilod.host.real import real_host
from zfsilod.host.run import Runner
from zfsilod.model.errors import FailedPrecondition

CONFIGFS = ("/sys/kernel/config/target", "/sys/kernel/config/nvmet")
# Methods of Configfs that are one system call each.
CHANGES = ("make", "write", "link", "remove", "unlink", "protect")
# Tools that only read: a step that is cut before one of them has done what it has done before the
# next effect.
READERS = ("blkid", "zfs get", "zfs holds", "zfs list", "zpool list", "udevadm settle")


def real_inventory() -> list[str]:
    """Return the objects of the steps on this machine, except zvols."""
    objects = []
    for configfs in CONFIGFS:
        for folder, below, _files in os.walk(configfs):
            objects += [path for name in below if UID in (path := f"{folder}/{name}")]
    root = Path("/")
    objects += [str(path) for path in root.glob(f"sys/fs/cgroup/{UNIT_GROUP}/**/")]
    objects += [str(path) for path in root.glob("sys/kernel/config/nvmet/ports/*")]
    objects += [p.read_text() for p in root.glob("sys/class/nvme/*/subsysnqn")]
    objects += NvmeKeyring().hosts(NVME_TARGET)
    objects += [str(path) for path in root.glob("etc/iscsi/nodes/*/*")]
    objects += [p.read_text() for p in root.glob("sys/class/iscsi_session/*/targetname")]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if any(name in line for name in ("/dev/sd", "/dev/nvme")) or is_node(line.split()[3]):
            objects.append(line.split()[4])
    return sorted(objects)


def is_node(root: str) -> bool:
    """Return whether the root of a mount in its filesystem is the device node of a disk."""
    return root.startswith(("/sd", "/nvme"))


def real_contract() -> Contract:
    """Return the contract on this machine."""
    interrupter = EffectInterrupter()
    for name in CHANGES:
        interrupter.count_calls(Configfs, name)
    interrupter.count_calls(Runner, "__call__", is_effect=is_change)
    interrupter.count_calls(nvme_paths, "send_options")
    interrupter.count_calls(NvmeController, "set_attribute")
    interrupter.count_calls(KeyCalls, "add")
    interrupter.count_calls(KeyCalls, "unlink")
    interrupter.count_calls(Runner, "stream")
    host = real_host(secrets, MadeUpKeys(), open_stream=open_stream)
    return Contract(host, interrupter, real_inventory, _print)


def is_change(_runner: Runner, argv: list[str]) -> bool:
    """Return whether a command can change the machine."""
    return not {argv[0], " ".join(argv[:2])}.intersection(READERS)


def open_stream(_operation: str) -> int:
    """Return the stream of the example's snapshot; zfs runs without the runner that is cut."""
    output, stream = socket.socketpair()
    with output:
        snapshot = f"{DATASET}@zfsilo-{SNAPSHOT_SET.uid}"
        subprocess.Popen(
            ["zfs", "send", snapshot], stdout=output.fileno(), stderr=subprocess.DEVNULL
        )
    return stream.detach()


def _print(case: str, error: str) -> None:
    print(json.dumps({"case": case, "ok": not error, "error": error}), flush=True)


def bare_zvol(contract: Contract) -> None:
    """Check that a zvol without the marks of zfsilo is foreign."""
    run = Runner()
    with contract.foreign("create", Zvol, "zvol without marks"):
        run(["zfs", "create", "-s", "-V", "64M", DATASET], timeout_s=60)
    with contract.case("create: zvol without marks: it is not destroyed"):
        run(["zfs", "destroy", DATASET], timeout_s=60)


def live_session(contract: Contract) -> None:
    """Check that the guard of an unpublication detects a session and refuses."""
    guard, _second = steps_of("unpublish", NoSession)
    with contract.case("unpublish: guard with a live session"):
        assert guard.probe(contract.host) is False
        refused = ""
        try:
            guard.do(contract.host)
        except FailedPrecondition as error:
            refused = error.reason
        assert refused == "SESSION_LIVE"
        assert guard.probe(contract.host) is False, "the guard ended the session"


def is_over(name: str, transport: str) -> bool:
    """Return whether an example is over a transport; what is without one is over iscsi."""
    kind = name.partition("-")[0]
    return (kind if kind in ("nvme", "tls") else "iscsi") == transport


def main(words: list[str]) -> None:
    """Run a part: server or client TRANSPORT, guard, resize, rotate; example, prepare, clean-up."""
    contract = real_contract()
    match words:
        case ["server", transport]:
            for name in SERVER:
                if is_over(name, transport):
                    contract.example(name)
            if transport == "nvme":
                contract.foreign_subsystem()
            elif transport == "iscsi":
                contract.foreign_server()
                bare_zvol(contract)
        case ["client", transport]:
            for name in CLIENT:
                if name not in AFTER_SERVER and is_over(name, transport):
                    contract.example(name)
            if transport == "iscsi":
                contract.foreign_client()
        case ["guard"]:
            live_session(contract)
        case ["rotate"]:
            contract.host.lio.set_secrets(TARGET, PUBLICATION.initiator, chap=ROTATED)
        case ["rotate", "nvme"]:
            initiator = NVME_PUBLICATION.initiator
            contract.host.nvmet.set_secrets(NVME_TARGET, initiator, chap=NVME_ROTATED)
        case ["rotate", "tls"]:
            keys = secrets(TLS_PUBLICATION.but(rotation=1).secret)
            contract.host.nvmet.set_secrets(NVME_TARGET, TLS_PUBLICATION.initiator, chap=keys)
        case ["example", name]:
            contract.example(name)
        case ["prepare", name]:
            contract.prepare(name)
        case ["clean-up", name]:
            contract.clean_up(name)
        case ["resize"]:
            for step in steps_of("resize", ZvolSize):
                contract.check_do(step, "resize: with a live session")
        case _:
            sys.exit(f"unknown part: {' '.join(words)}")

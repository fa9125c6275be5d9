"""The modules that a worker imports, for each request and each adapter.

Every module costs CPU time in a process that runs once for each operation. A module that is added
here has to be worth it: `python -m tests.bench worker_cpu` measures the worker.
"""

from __future__ import annotations

import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.bench.worker_cpu import python, stored, worker
from tests.examples import UID
from zfsilod.host.fake import SIMULATED_MACHINE
from zfsilod.model.ownership import IDENTITY, StoreIdentity
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

# The modules of the standard library that may be imported, and lmdb. Not among them: pathlib, enum,
# signal, typing, subprocess, contextlib, re, functools, collections, json, logging, argparse.
SMALL = {
    "__future__",
    "_collections_abc",
    "_json",
    "_stat",
    "errno",
    "fcntl",
    "genericpath",
    "itertools",
    "lmdb",
    "lmdb._envid",
    "lmdb.cpython",
    "os",
    "posixpath",
    "select",
    "stat",
}
OF_ADAPTERS = {"_struct", "mmap", "struct"}  # of all of them, for device_users
OF_SECRETS = {  # AES-GCM
    "_cffi_backend",
    "cryptography",
    "cryptography.__about__",
    "cryptography.hazmat",
    "cryptography.hazmat.bindings",
    "cryptography.hazmat.bindings._rust",
    "types",
}
OF_THE_FAKE = {"_blake2", "_hashlib", "_sha2", "hashlib"}

COMMON = (
    "engine engine.configuration engine.groups engine.limits engine.locks engine.process "
    "engine.step engine.steps engine.worker host model model.chap model.errors model.host_facts "
    "model.lean "
    "model.marks model.observed model.record model.records storage storage.files storage.paths "
    "storage.record_json storage.secrets storage.store storage.transaction"
)
STEPS = {
    "create": "engine.steps.zfs model.sizes",
    "publish": "engine.steps.access engine.steps.export host.transports model.names",
    "connect": "engine.steps.session host.transports model.names model.sizes",
    "mount": "engine.steps.mount",
}
COMPARED = "engine.steps.ownership model.names model.ownership"  # before a rollback
WITH_SECRETS = ("publish", "connect")
DISKS = (
    "host.attributes host.device host.device_users host.disks host.events host.mountinfo "
    "host.processes model.names"
)
ZFS = f"{DISKS} host.zfs host.zfs_output host.zvol_device"
ADAPTERS = {
    "zfs": ZFS,
    "snapshots": f"{ZFS} host.snapshots",
    "lio": f"{ZFS} host.configfs host.export_paths host.lio host.portals host.reservations",
    "iscsi": f"{DISKS} host.iscsi host.locks host.logins host.node_records model.connection",
    "nvmet": f"{ZFS} host.configfs host.export_paths host.locks host.nvme_keyring host.nvmet "
    "host.nvmet_closed host.nvmet_ports host.portals",
    "nvme": f"{DISKS} host.nvme host.nvme_disks host.nvme_fabrics host.nvme_keyring "
    "host.nvme_paths host.portals model.connection",
    "block": f"{DISKS} host.all_disks host.block host.places host.superblock",
    "mounts": f"{DISKS} host.all_disks host.block host.filesystem_health host.mount "
    "host.mount_calls host.mountpoints host.places host.processes host.superblock",
}
LIMITS = """
from zfsilod.engine.limits import read_limits
from zfsilod.model import mount_options, mount_path, names, zfs_properties
assert names.is_portal("[::1]:3260")
"""


@pytest.mark.parametrize("request_name", STEPS)
def test_a_worker_imports_what_its_steps_need(tmp_path: Path, request_name: str) -> None:
    state, operation_id = stored(request_name, tmp_path / "state")
    ours, others = imported(worker(state, operation_id, "-X", "importtime"))
    assert {name for name in ours if not name.startswith("host.fake")} == {
        *COMMON.split(),
        *STEPS[request_name].split(),
    }
    allowed = SMALL | OF_THE_FAKE | (OF_SECRETS if request_name in WITH_SECRETS else set())
    assert others <= allowed


def test_a_rollback_imports_what_compares_the_store_too(tmp_path: Path) -> None:
    state, operation_id = stored("create", tmp_path / "state")
    store = Store(state)
    with store.write() as txn:
        txn.put(
            StoreIdentity(id=IDENTITY, store_id=UID, machine=SIMULATED_MACHINE, root="tank/zfsilo")
        )
    store.close()
    argv = worker(state, operation_id, "-X", "importtime", command="rollback")
    ours, others = imported(argv)
    assert {name for name in ours if not name.startswith("host.fake")} == {
        *COMMON.split(),
        *STEPS["create"].split(),
        *COMPARED.split(),
    }
    assert others <= SMALL | OF_THE_FAKE


def test_the_machine_id_imports_little() -> None:
    code = "from zfsilod.host.machine_id import machine_id; machine_id()"
    _ours, others = imported(python(code, "-X", "importtime"))
    assert others <= SMALL | OF_THE_FAKE | {"_operator", "hmac", "warnings"}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_imports_what_it_needs(adapter: str) -> None:
    code = (
        "from zfsilod.engine import process; from zfsilod.host.real import real_host; "
        f"real_host(lambda name: None, None).{adapter}"
    )
    ours, others = imported(python(code, "-X", "importtime"))
    always = {*COMMON.split(), "host.real", "host.run"}
    assert ours - always == set(ADAPTERS[adapter].split())
    assert others <= SMALL | OF_ADAPTERS


def test_the_limits_of_fields_import_little() -> None:
    _ours, others = imported(python(LIMITS, "-X", "importtime"))
    assert others <= SMALL | {"_socket"}


def test_a_wait_for_the_kernel_imports_little() -> None:
    code = "from zfsilod.host.events import wait_for; wait_for(lambda: None, 0.001)"
    _ours, others = imported(python(code, "-X", "importtime"))
    assert others <= SMALL | {"_socket"}


def imported(argv: list[str]) -> tuple[set[str], set[str]]:
    """Run Python with `-X importtime`; return our modules, without "zfsilod.", and the others."""
    names = {name for name in traced(tuple(argv)) if name not in bare()}
    ours = {name.removeprefix("zfsilod.") for name in names if name.startswith("zfsilod.")}
    return ours, {name for name in names if not name.startswith("zfsilod")}


@cache
def bare() -> frozenset[str]:
    """Return what the interpreter itself imports."""
    return traced(tuple(python("pass", "-X", "importtime")))


def traced(argv: tuple[str, ...]) -> frozenset[str]:
    """Run Python with `-X importtime`, and return the modules that it reports."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return frozenset(line.rpartition("|")[2].strip() for line in lines[1:])

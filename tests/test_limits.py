"""The worker checks operations against the configuration of root, whatever the store says."""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from tests import examples
from tests.worker_rig import WorkerRig
from zfsilod.engine import plans
from zfsilod.engine.limits import WorkerLimits, parse, read_limits
from zfsilod.engine.steps.mount import MountPoint
from zfsilod.engine.worker import Worker, work
from zfsilod.model.errors import FailedPrecondition, PermissionDenied
from zfsilod.model.records import Attachment, Operation, Volume
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = WorkerLimits(root="tank", prefix=examples.HOW.prefix, folders=("/var/lib/kubelet",))
MOUNT = examples.ATTACHMENT.mounts[0]


def attach(**changes: Any) -> Attachment:
    return examples.ATTACHMENT.but(**changes)


def volume(dataset: str) -> Volume:
    return examples.VOLUME.but(dataset=dataset)


@pytest.mark.parametrize("example", examples.PLANS, ids=lambda example: example.name)
def test_every_plan_is_within_the_limits(example: examples.Example) -> None:
    LIMITS.check(example.actions)


@pytest.mark.parametrize("dataset", ["rpool/data", "tankx/data", "rpool", "tank-2/a"])
@pytest.mark.parametrize("up", [True, False])
def test_a_dataset_elsewhere_is_refused(dataset: str, up: bool) -> None:
    make = plans.up if up else plans.down
    with pytest.raises(PermissionDenied, match=r"server\.root"):
        LIMITS.check(make([plans.zvol(volume(dataset))]))
    with pytest.raises(PermissionDenied):
        LIMITS.but(root="").check(make([plans.zvol(volume("tank/a"))]))


def test_the_targets_of_others_are_refused() -> None:
    disk = examples.ATTACHMENT.disk
    for target in ("iqn.2001-05.com.vendor:disk", f"x:{examples.UID}", "iqn.2026-01.org.zfsilo:a"):
        steps = plans.connection_steps(attach(disk=disk.but(target=target)))
        with pytest.raises(PermissionDenied):
            LIMITS.check(plans.up(steps))
    other = examples.HOW.but(prefix="iqn.2001-05.com.vendor")
    with pytest.raises(PermissionDenied, match="iqn_prefix"):
        LIMITS.check(plans.up(plans.export_steps(examples.VOLUME, other)))


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/proc/x", "/"),
        ("/var/lib/zfsilo/store", "/"),
        ("/a/../b", "/"),
        ("/usr/lib/systemd/system", "/usr/lib"),
        ("/var/lib/kubelet2/x", "/var/lib/kubelet2"),
    ],
)
def test_paths_beyond_the_role_are_refused(path: str, root: str) -> None:
    with pytest.raises(PermissionDenied):
        LIMITS.check(plans.up([MountPoint(path=path, file=False, root=root)]))


def test_paths_of_each_role() -> None:
    for path, root in (("/srv/x", "/"), ("/srv/x", ""), ("/var/lib/kubelet/x", "/var/lib/kubelet")):
        LIMITS.check(plans.up([MountPoint(path=path, file=False, root=root)]))
    # a mount stays removable after its folder has left the configuration
    LIMITS.check(plans.down([MountPoint(path="/old/x", file=False, root="/old")]))


@pytest.mark.parametrize("status", ["PENDING", "STARTED"])
def test_neither_run_nor_rollback_touches_it(tmp_path: Path, status: Any) -> None:
    rig = WorkerRig()
    example = next(example for example in examples.PLANS if example.name == "create")
    actions = tuple(action.but(status=status) for action in example.actions)
    store = Store.create(tmp_path, host="simulated", size_bytes=64 << 20)
    with store.write() as txn:
        txn.add_operation(examples.operation(example).but(actions=actions))
    before = rig.host.facts.snapshot()
    limits = LIMITS.but(root="rpool")
    operation_id = examples.operation(example).id
    assert "refuses dataset tank/data" in work(store, rig.host, operation_id, "run", limits)[0]
    failed = Worker(store, rig.host, operation_id, limits).latest
    assert failed.failure
    assert (failed.state, failed.failure.reason) == ("FAILED", "OUTSIDE_LIMITS")
    work(store, rig.host, operation_id, "rollback", limits)
    with store.read() as txn:
        operation = txn.get(Operation, operation_id)
    assert operation
    expected = "ROLLED_BACK" if status == "PENDING" else "NEEDS_REPAIR"
    assert operation.state == expected
    assert rig.host.facts.snapshot() == before


# The configuration


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[server]\nroot = "tank/zfsilo" # here\n\n[csi]\nallowed_paths = ["/a", "/b",]\n',
        '# [server]\n[server]\r\nroot="tank"\r\niqn_prefix = "iqn.2026-01.org.example:s"\r\n',
        '[server]\nroot = "a#b"\n[csi]\nallowed_paths = []\n',
        '[server]\nroot = """\ntank"""\n',
        "[server]\nroot = 'tank'\n",
        '[server]\nroot = "t\\u0061nk"\n',
        'server.root = "tank"\n',
        'server = { root = "tank" }\n',
        '[csi]\nallowed_paths = [\n  "/a",\n  "/b",\n]\n',
        '[daemon]\nx = """\n[server]\nroot = "evil"\n"""\n[server]\nroot = "tank"\n',
        '["server"]\nroot = "tank"\n',
        '[csi]\nallowed_paths = ["/a]b", "/c,d" , "/e#f"] # x\n',
        '[csi]\nallowed_paths = ["/a" "x"]\n'.replace(' "x"', ""),
        '[server]\nvolblocksize = 16384\nroot = "tank"\n[tls]\nimported_roles = []\n',
        '[server]\n  root\t=\t"tank"  \n',
    ],
)
def test_the_short_parser_reads_what_the_long_one_reads(text: str) -> None:
    long, short = tomllib.loads(text), parse(text)
    for table, key in (("server", "root"), ("server", "iqn_prefix"), ("csi", "allowed_paths")):
        assert short.get(table, {}).get(key) == long.get(table, {}).get(key)


@pytest.mark.parametrize(
    "text",
    [
        "[server",
        '[csi]\nallowed_paths = ["a" "b"]',
        "[csi]\nallowed_paths = [,]",
        '[server]\nroot = "a"\nroot = "b"\n',
        "x",
    ],
)
def test_what_is_not_toml_is_an_error(text: str) -> None:
    with pytest.raises(FailedPrecondition, match="not TOML"):
        parse(text)


def test_files_are_merged_and_belong_to_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root owns files of root")
    assert read_limits(tmp_path) == WorkerLimits(root="", prefix="", folders=("/var/lib/kubelet",))
    main, more = tmp_path / "zfsilod.toml", tmp_path / "zfsilod.toml.d"
    more.mkdir()
    main.write_text('[server]\nroot = "tank"\niqn_prefix = "iqn.2026-01.org.Example"\n')
    (more / "b.toml").write_text('[csi]\nallowed_paths = ["/srv/b"]\n')
    (more / "a.toml").write_text('[server]\nroot = "pool"\n[csi]\nallowed_paths = ["/srv/a"]\n')
    assert read_limits(tmp_path) == WorkerLimits(
        root="pool", prefix="iqn.2026-01.org.example", folders=("/srv/b",)
    )
    main.chmod(0o666)
    with pytest.raises(FailedPrecondition, match="may be written by others"):
        read_limits(tmp_path)

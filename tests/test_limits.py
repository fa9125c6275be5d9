"""The worker checks operations against the configuration of root, whatever the store says."""

from __future__ import annotations

import os
import tomllib
from types import new_class
from typing import TYPE_CHECKING, Any

import pytest

from tests import examples
from tests.worker_rig import WorkerRig
from zfsilod import config
from zfsilod.engine import plans
from zfsilod.engine.configuration import parse
from zfsilod.engine.limits import FIELDS, WorkerLimits, check_of, read_limits
from zfsilod.engine.step import HostStep
from zfsilod.engine.steps.mount import LazyUnmounted, MountPoint
from zfsilod.engine.steps.session import Node
from zfsilod.engine.steps.zfs import ZvolProperty
from zfsilod.engine.worker import Worker, work
from zfsilod.model.errors import FailedPrecondition, PermissionDenied
from zfsilod.model.record import CLASSES, Record
from zfsilod.model.records import Attachment, Operation, Volume
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zfsilod.model.records import Action

MOUNT = examples.ATTACHMENT.mounts[0]


@pytest.fixture
def limits(tmp_path: Path) -> WorkerLimits:
    """The limits of a host that is joined to the server of the examples."""
    folder = tmp_path / "etc/servers.d"
    folder.mkdir(mode=0o755, parents=True)
    (folder / "give.toml").touch(mode=0o600)
    return WorkerLimits(
        directory=str(tmp_path / "etc"),
        root="tank",
        prefix=examples.HOW.prefix,
        portals=examples.HOW.portals,
        nvme_portals=examples.HOW.nvme_portals,
        nvme_cntlid_min=examples.HOW.nvme_cntlid_min,
        folders=("/var/lib/kubelet",),
    )


def attach(**changes: Any) -> Attachment:
    return examples.ATTACHMENT.but(**changes)


def volume(dataset: str) -> Volume:
    return examples.VOLUME.but(dataset=dataset)


def refused(limits: WorkerLimits, actions: tuple[Action, ...]) -> str:
    """Return why the worker refuses actions."""
    with pytest.raises(PermissionDenied) as refusal:
        limits.check(actions)
    assert refusal.value.reason == "OUTSIDE_LIMITS"
    return refusal.value.message


@pytest.mark.parametrize("example", examples.PLANS, ids=lambda example: example.name)
def test_every_plan_is_within_the_limits(example: examples.Example, limits: WorkerLimits) -> None:
    limits.check(example.actions)


# Every field of every step

HOSTILE = (
    "../../../etc/shadow",
    "/etc/systemd/system/../x",
    "tank/data@snapshot",
    "tank/data\nrpool",
    "-r",
    "rpool/data,tank/data",
    "%s\x1b[2J",
)
PLAIN = {"volume", "host", "operation", "secret", "previous", "value", "owner"}
"""Fields that name nothing on a host. A new one may be any text: add it here with this in mind."""


def fields(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the tag and the name of every field of a step, and of the records in it."""
    for name in record.FIELDS:
        yield record.TAG, name
        value = getattr(record, name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Record):
                yield from fields(inner)


def with_value(record: Record, tag: str, name: str, value: object) -> Record:
    """Return a step with another value of a field, of its own or of the records in it."""

    def changed(present: object) -> object:
        if isinstance(present, Record):
            return with_value(present, tag, name, value)
        if isinstance(present, tuple):
            return tuple(map(changed, present))
        return present

    changes = {own: changed(getattr(record, own)) for own in record.FIELDS}
    if tag == record.TAG:
        changes[name] = alike(getattr(record, name), value)
    return record.but(**changes)


def alike(present: object, value: object) -> object:
    """Return a value in the shape of the present one: a text, a tuple of texts, or pairs."""
    if not isinstance(present, tuple):
        return value
    return ((value, value),) if present and isinstance(present[0], tuple) else (value,)


@pytest.mark.parametrize("step", examples.steps(), ids=lambda step: type(step).__name__)
def test_every_field_of_every_step_has_a_limit(step: HostStep, limits: WorkerLimits) -> None:
    for tag, name in fields(step):
        for value in HOSTILE:
            forged: Any = with_value(step, tag, name, value)
            if name in PLAIN and value.isprintable():
                limits.check(plans.up([forged]))
            elif f"{tag}.{name}" != "Detached.root":
                assert refused(limits, plans.up([forged])), (name, value)


def test_every_step_class_has_limits() -> None:
    classes = [kind for kind in CLASSES.values() if issubclass(kind, HostStep)]
    assert {type(step) for step in examples.steps()} == set(classes)
    for kind in classes:
        assert all(check_of(kind.TAG, name) for name in kind.FIELDS), kind


def test_a_step_with_a_field_without_a_limit_is_refused() -> None:
    methods: dict[str, object] = {name: lambda *_args: "" for name in HostStep.ABSTRACT}
    methods["__annotations__"] = {"dataset": "str", "unit_file": "str"}

    def make(tag: str) -> None:
        new_class(
            "Careless", (HostStep,), {"tag": tag, "part": "POOL"}, lambda n: n.update(methods)
        )

    with pytest.raises(TypeError, match="unit_file of Careless has no limit"):
        make("TestCareless")
    assert "TestCareless" not in CLASSES
    FIELDS["TestCareless.unit_file"] = FIELDS["volume"]
    try:
        make("TestCareless")
    finally:
        del FIELDS["TestCareless.unit_file"]
        CLASSES.pop("TestCareless", None)


def test_a_record_of_another_kind_in_a_step_is_refused(limits: WorkerLimits) -> None:
    session = plans.connection_steps(examples.ATTACHMENT)[2]
    for forged in (examples.HOW, examples.VOLUME, "sda"):
        refused(limits, plans.up([session.but(disk=forged)]))


# Datasets, targets, paths


@pytest.mark.parametrize(
    "dataset",
    [
        "tank",
        "tank/",
        "tank/.",
        "tank/../rpool/data",
        "tank/a/../../../sda",
        "tank/a@b",
        "tank/a#b",
        "tank/a%b",
        "tank/a b",
        "tank//a",
        "tankx/data",
        "tank-2/a",
        "rpool",
        "rpool/data",
        "",
    ],
)
@pytest.mark.parametrize("up", [True, False])
def test_a_dataset_elsewhere_is_refused(dataset: str, up: bool, limits: WorkerLimits) -> None:
    make = plans.up if up else plans.down
    assert "server.root" in refused(limits, make([plans.zvol(volume(dataset))]))
    refused(limits, make([plans.in_trash(examples.VOLUME, examples.VOLUME.dataset, dataset)]))
    refused(limits.but(root=""), make([plans.zvol(volume("tank/a"))]))


def test_the_properties_of_others_are_refused(limits: WorkerLimits) -> None:
    for name in (
        "keylocation",
        "mountpoint",
        "volsize",
        "volmode",
        "zfsilo:",
        "zfsilo:a=b,c",
        "-r",
    ):
        step = ZvolProperty(dataset="tank/data", name=name, value="full", previous="")
        refused(limits, plans.up([step]))
        refused(limits, plans.up([plans.zvol(examples.VOLUME).but(properties=((name, "x"),))]))


def test_the_targets_of_others_are_refused(limits: WorkerLimits) -> None:
    disk = examples.ATTACHMENT.disk
    for target in ("iqn.2001-05.com.vendor:disk", f"x:{examples.UID}", "iqn.2026-01.org.zfsilo:a"):
        steps = plans.connection_steps(attach(disk=disk.but(target=target)))
        refused(limits, plans.up(steps))
    other = examples.HOW.but(prefix="iqn.2001-05.com.vendor")
    actions = plans.up(plans.export_steps(examples.VOLUME, other))
    assert "iqn_prefix" in refused(limits, actions)


def test_a_target_listens_at_the_configured_portals_only(limits: WorkerLimits) -> None:
    everywhere = examples.HOW.but(portals=("0.0.0.0:3260",))
    steps = plans.export_steps(examples.VOLUME, everywhere)
    assert "server.portals" in refused(limits, plans.up(steps))
    limits.check(plans.down(steps))  # the portals that are removed may be those of before


def test_tls_has_the_configured_port_only(limits: WorkerLimits) -> None:
    """A step of one kind may not use a portal of the other, in either direction."""
    volume, publication = examples.NVME_VOLUME, examples.TLS_PUBLICATION
    limits.check(plans.publish(volume, publication, examples.HOW, []))
    for port in (4420, 4422):
        other = examples.HOW.but(nvme_tls_port=port)
        actions = plans.publish(volume, publication, other, [])
        assert "server.nvme_tls_port" in refused(limits, actions)
    plain = examples.HOW.but(nvme_portals=("10.77.0.1:4421",))
    actions = plans.publish(volume, examples.NVME_PUBLICATION, plain, [])
    assert "server.nvme_portals" in refused(limits, actions)


def test_a_target_gives_the_configured_controller_ids(limits: WorkerLimits) -> None:
    """Ids of another server would end the controllers that a client has there."""
    for how in (
        examples.HOW.but(nvme_cntlid_min=1),
        examples.HOW.but(nvme_cntlid_min=65519),
        examples.HOW.but(nvme_cntlid_max=40000),
    ):
        actions = plans.publish(examples.NVME_VOLUME, examples.NVME_PUBLICATION, how, [])
        assert "server.nvme_cntlid" in refused(limits, actions)


def test_the_targets_of_a_server_have_its_prefix(limits: WorkerLimits, tmp_path: Path) -> None:
    file = tmp_path / "etc/servers.d/give.toml"
    node = plans.connection_steps(examples.ATTACHMENT)[0]
    pem = 'authority = """\n-----BEGIN CERTIFICATE-----\n"""\n'
    for text, valid in (
        ('address = "give:9750"\n', True),
        (f'iqn_prefix = "{examples.HOW.prefix}"\n{pem}', True),
        (f'iqn_prefix = "iqn.2026-01.org.zfsilo:other"\n{pem}', False),
        (f'{pem}iqn_prefix = "iqn.2026-01.org.zfsilo:other"\n', False),
    ):
        file.write_text(text)
        if valid:
            limits.check(plans.up([node]))
        else:
            assert "servers.d" in refused(limits, plans.up([node]))
    file.unlink()
    assert "servers.d" in refused(limits, plans.up([node]))
    limits.check(plans.down([node]))  # this host has left the server
    assert isinstance(node, Node)
    limits.check(plans.up([node.but(server="")]))  # of version 0.1.0


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
def test_paths_beyond_the_role_are_refused(path: str, root: str, limits: WorkerLimits) -> None:
    refused(limits, plans.up([MountPoint(path=path, file=False, root=root)]))
    bind = plans.mounting_steps(examples.ATTACHMENT, MOUNT)[1]
    refused(limits, plans.up([bind.but(source=path, source_root=root)]))


def test_paths_of_each_role(limits: WorkerLimits) -> None:
    for path, root in (("/srv/x", "/"), ("/srv/x", ""), ("/var/lib/kubelet/x", "/var/lib/kubelet")):
        limits.check(plans.up([MountPoint(path=path, file=False, root=root)]))
    # a mount stays removable after its folder has left the configuration
    limits.check(plans.down([MountPoint(path="/old/x", file=False, root="/old")]))
    lazy = LazyUnmounted(disk=examples.ATTACHMENT.disk, path="/old/x", root="/old")
    limits.check(plans.up([lazy]))


def test_a_link_of_an_old_path_does_not_lead_into_closed_folders(
    limits: WorkerLimits, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("/run/zfsilo")
    steps = [MountPoint(path=f"{tmp_path}/link/gateway", file=False, root="")]
    refused(limits, plans.up(steps))
    refused(limits, plans.down(steps))


# The worker


Rig = tuple[WorkerRig, Store, Operation]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Rig]:
    """Store an operation with actions of these statuses."""

    def store_it(name: str, *statuses: Any, **changes: Any) -> Rig:
        rig = WorkerRig()
        example = next(example for example in examples.PLANS if example.name == name)
        operation = examples.operation(example)
        pairs = zip(operation.actions, statuses, strict=True)
        actions = tuple(action.but(status=status) for action, status in pairs)
        store = Store.create(tmp_path / "state", host="simulated", size_bytes=64 << 20)
        operation = operation.but(actions=actions, **changes)
        with store.write() as txn:
            txn.add_operation(operation)
        return rig, store, latest(store, operation)

    return store_it


def latest(store: Store, operation: Operation) -> Operation:
    with store.read() as txn:
        present = txn.get(Operation, operation.id)
    assert present
    return present


@pytest.mark.parametrize("status", ["PENDING", "STARTED"])
def test_neither_run_nor_rollback_touches_it(
    stored: Callable[..., Rig], limits: WorkerLimits, status: Any
) -> None:
    rig, store, operation = stored("create", status)
    before = rig.host.facts.snapshot()
    limits = limits.but(root="rpool")
    assert "refuses dataset 'tank/data'" in work(store, rig.host, operation.id, "run", limits)[0]
    failed = Worker(store, rig.host, operation.id, limits).latest
    assert failed.failure
    assert (failed.state, failed.failure.reason) == ("FAILED", "OUTSIDE_LIMITS")
    work(store, rig.host, operation.id, "rollback", limits)
    expected = "ROLLED_BACK" if status == "PENDING" else "NEEDS_REPAIR"
    assert latest(store, operation).state == expected
    assert rig.host.facts.snapshot() == before


def test_a_rollback_that_goes_forward_is_checked(
    stored: Callable[..., Rig], limits: WorkerLimits
) -> None:
    """A final action that is done makes the rollback do the pending actions."""
    rig, store, operation = stored("create-from-snapshot", "DONE", "PENDING", "PENDING")
    source = examples.ORIGIN.snapshot_ref.dataset
    for step in next(e for e in examples.PLANS if e.name == "create-from-snapshot").before:
        assert isinstance(step, HostStep)
        step.do(rig.host)
    done, reserved, grown = operation.actions
    forged = reserved.but(step=reserved.step.but(dataset="rpool/victim"))
    with store.write() as txn:
        txn.put(operation.but(actions=(done, grown.but(status="DONE"), forged)))
    before = rig.host.facts.snapshot()
    assert source.startswith("tank/")
    errors = work(store, rig.host, operation.id, "rollback", limits)
    assert "refuses dataset 'rpool/victim'" in errors[0]
    assert latest(store, operation).state == "NEEDS_REPAIR"
    assert rig.host.facts.snapshot() == before


def test_a_rollback_without_any_trace_is_checked(
    stored: Callable[..., Rig], limits: WorkerLimits
) -> None:
    """An operation that is complete is finished, and what is half-made of it is removed."""
    rig, store, operation = stored("delete", "PENDING")
    forged = operation.actions[0].but(step=plans.zvol(volume("rpool/victim")))
    with store.write() as txn:
        txn.put(operation.but(actions=(forged,)))
    errors = work(store, rig.host, operation.id, "rollback", limits)
    assert "refuses dataset 'rpool/victim'" in errors[0]


def test_a_batch_reads_nothing_outside_of_the_limits(
    stored: Callable[..., Rig], limits: WorkerLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, store, operation = stored("create", "PENDING", batch="b" * 26)
    surveys: list[tuple[str, ...]] = []

    def surveyed(datasets: tuple[str, ...]) -> object:
        surveys.append(datasets)
        return rig.host

    monkeypatch.setattr(rig.host, "surveyed", surveyed)
    assert work(store, rig.host, operation.unit, "run", limits.but(root="rpool"))
    assert not surveys
    with store.write() as txn:
        txn.put(latest(store, operation).but(state="RUNNING", failure=None))
    assert not work(store, rig.host, operation.unit, "run", limits)
    assert surveys == [("tank/data",)]


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


def test_files_are_merged(tmp_path: Path) -> None:
    defaults = WorkerLimits(
        directory=str(tmp_path),
        root="",
        prefix="",
        portals=("0.0.0.0:3260",),
        folders=("/var/lib/kubelet",),
    )
    assert read_limits(tmp_path) == defaults
    main, more = tmp_path / "zfsilod.toml", tmp_path / "zfsilod.toml.d"
    more.mkdir(mode=0o755)
    main.write_text('[server]\nroot = "tank"\niqn_prefix = "iqn.2026-01.org.Example"\n')
    (more / "b.toml").write_text('[csi]\nallowed_paths = ["/srv/b"]\n')
    (more / "a.toml").write_text('[server]\nroot = "pool"\n[csi]\nallowed_paths = ["/srv/a"]\n')
    expected = defaults.but(root="pool", prefix="iqn.2026-01.org.example", folders=("/srv/b",))
    assert read_limits(tmp_path) == expected


def test_defaults_are_those_of_the_daemon(tmp_path: Path) -> None:
    settings = config.load(tmp_path).settings
    limits = read_limits(tmp_path)
    assert limits.root == settings.root
    assert limits.portals == settings.export.portals
    assert limits.nvme_portals == settings.export.nvme_portals
    assert limits.nvme_tls_port == settings.export.nvme_tls_port
    assert limits.nvme_cntlid_min == settings.export.nvme_cntlid_min
    assert limits.nvme_cntlid_max == settings.export.nvme_cntlid_max
    assert limits.folders == settings.node_paths


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o777])
@pytest.mark.parametrize("name", ["zfsilod.toml", "zfsilod.toml.d/a.toml", "zfsilod.toml.d", "."])
def test_a_configuration_that_others_may_write_is_refused(
    tmp_path: Path, name: str, mode: int
) -> None:
    folder = tmp_path / "etc"
    (folder / "zfsilod.toml.d").mkdir(parents=True)
    for file in ("zfsilod.toml", "zfsilod.toml.d/a.toml"):
        (folder / file).write_text('[server]\nroot = "tank"\n')
    assert read_limits(folder).root == "tank"
    path = folder / name
    path.chmod(mode | 0o111 if path.is_dir() else mode)
    for read in (read_limits, config.load) if os.geteuid() == 0 else (read_limits,):
        with pytest.raises(FailedPrecondition, match=f"{path} may be written by others") as refusal:
            read(folder)
        assert refusal.value.reason == "BAD_CONFIG"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["zfsilod.toml", "."])
def test_a_configuration_of_another_user_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "zfsilod.toml").touch()
    os.chown(folder / name, 65534, 65534)
    with pytest.raises(FailedPrecondition, match="may be written by others"):
        read_limits(folder)


def test_a_configuration_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "zfsilod.toml").write_bytes(b"\xff")
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        read_limits(tmp_path)

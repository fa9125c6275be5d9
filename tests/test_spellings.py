"""One rule for each kind of name: all places that take one judge the same spellings alike.

tests/nix has the NixOS module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from csi.v1 import csi_pb2
from zfsilo_csi import config as csi_config
from zfsilo_csi import ids, volume_capabilities

from tests import examples, spellings
from tests.api.test_server_answers import UID, answer
from tests.host.doubles import FakeConfigfs, ScriptedRunner
from zfsilod import config
from zfsilod.ctl import paths
from zfsilod.ctl.commands import doctor, setup
from zfsilod.ctl.parser import parse
from zfsilod.engine import plans
from zfsilod.engine.limits import WorkerLimits, check_of
from zfsilod.engine.steps.export import Target
from zfsilod.host.lio import RealLio
from zfsilod.host.run import Runner
from zfsilod.model import mount_options, names, validation
from zfsilod.model.errors import ZfsiloError
from zfsilod.requests.hosts import CreateHost
from zfsilod.security.join_file import Access, make_join, parse_join
from zfsilod.wire.server_answers import check_connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.service_fixture import ServiceFixture

LIMITS = WorkerLimits(root="tank", prefix="", portals=("10.0.0.1:1",), folders=())
PEM = "-----BEGIN CERTIFICATE-----"


def accepts(check: Callable[[], object]) -> bool:
    """Tell whether a check passes."""
    try:
        check()
    except ZfsiloError:
        return False
    return True


def limit(field: str, value: object, limits: WorkerLimits = LIMITS) -> Callable[[], object]:
    """Return the check of a field of a step by the worker, for the step that creates a target."""
    check = check_of("", field)
    assert check is not None
    [action] = plans.up([Target(target="")])
    return lambda: check(limits, value, action)


def loaded(etc: Path, line: str) -> config.Config:
    """Return the configuration with one line below [server]."""
    etc.mkdir(exist_ok=True)
    (etc / "zfsilod.toml").write_text(f"[server]\n{line}\n")
    return config.load(etc)


@pytest.mark.parametrize(("name", "valid"), spellings.INITIATORS.items())
async def test_initiators(
    name: str, *, valid: bool, fixture: ServiceFixture, tmp_path: Path
) -> None:
    file = tmp_path / doctor.INITIATOR_NAME
    file.parent.mkdir(parents=True)
    file.write_text(f"InitiatorName={name}\n")
    assert (not doctor.initiator(doctor.HostFiles(tmp_path)).problem) == valid
    assert accepts(limit("initiator", name)) == valid
    assert accepts(lambda: names.iscsi_name(name)) == valid
    if not valid:
        with pytest.raises(ZfsiloError, match="is not an IQN"):
            await fixture.do(CreateHost(id="host", iqn=name))
        return
    await fixture.do(CreateHost(id="host", iqn=name))
    with pytest.raises(ZfsiloError, match="is the name of host host"):
        await fixture.do(CreateHost(id="other", iqn=name.swapcase()))


async def test_an_nqn_of_two_hosts_is_refused_in_any_case(fixture: ServiceFixture) -> None:
    """Firmware and tools write the UUID of a machine in either case."""
    nqn = "nqn.2014-08.org.nvmexpress:uuid:4c4c4544-0031"
    await fixture.do(CreateHost(id="host", nqn=nqn))
    with pytest.raises(ZfsiloError, match=r"name of host host.* in /etc/nvme/hostnqn") as caught:
        await fixture.do(CreateHost(id="other", nqn=nqn.replace("4c4c", "4C4C")))
    assert caught.value.reason == "NAME_TAKEN"


@pytest.mark.parametrize(("prefix", "valid"), spellings.PREFIXES.items())
def test_prefixes(prefix: str, *, valid: bool, tmp_path: Path) -> None:
    assert accepts(lambda: loaded(tmp_path / "a", f'iqn_prefix = "{prefix}"')) == valid
    assert accepts(lambda: loaded(tmp_path / "b", f'former_prefixes = ["{prefix}"]')) == valid

    def join() -> Access:
        access = Access(
            name="give",
            address="give:9750",
            tls_name="give",
            authority=PEM,
            token="t",
            iqn_prefix=prefix,
        )
        return parse_join(make_join(access))

    assert accepts(join) == valid
    if not valid:
        return
    settings = loaded(tmp_path / "a", f'iqn_prefix = "{prefix}"').settings
    target = f"{settings.export.prefix}:{UID}"
    connection = check_connection("give", "data", answer(target=target), join().iqn_prefix)
    assert connection.target == target
    limits = LIMITS.but(prefix=prefix.lower())
    for spelled in (target, f"{prefix}:{UID}"):
        assert accepts(limit("target", spelled, limits))


@pytest.mark.parametrize(("portal", "canonical"), spellings.PORTALS.items())
def test_portals(portal: str, canonical: str, tmp_path: Path) -> None:
    valid = bool(canonical)
    assert accepts(lambda: loaded(tmp_path / "etc", f'portals = ["{portal}"]')) == valid
    assert accepts(lambda: check_connection("give", "data", answer(portals=[portal]), "")) == valid
    lio = RealLio(ScriptedRunner(), str, FakeConfigfs(tmp_path / "target"))
    (tmp_path / "target/iscsi" / examples.HOW.prefix / "tpgt_1/np").mkdir(parents=True)
    assert accepts(lambda: lio.add_portals(examples.HOW.prefix, (portal,))) == valid
    if not valid:
        assert not accepts(limit("portals", (portal,)))
        return
    settings = loaded(tmp_path / "etc", f'portals = ["{portal}", "{canonical}"]').settings
    assert settings.export.portals == (canonical,)
    connection = check_connection("give", "data", answer(portals=[portal, canonical]), "")
    assert connection.portals == (canonical,)
    assert accepts(limit("portals", (canonical,), LIMITS.but(portals=(portal,))))
    assert lio.has_portals(examples.HOW.prefix, (portal,))
    assert lio.has_portals(examples.HOW.prefix, (canonical,))


@pytest.mark.parametrize(("portal", "canonical"), spellings.PORTALS.items())
def test_portals_of_setup(
    portal: str, canonical: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "etc", lambda: tmp_path)
    monkeypatch.setattr(setup, "_exists", lambda _run, _root: True)
    args = parse(["setup", "--root=tank/zfsilo", f"--portal={portal}"])
    if canonical:
        assert setup.make_plan(args, Runner()).portals == (canonical,)
    elif "]:" in portal or ("." in portal.partition(":")[0] and ":" in portal):  # it adds a port
        assert not accepts(lambda: setup.make_plan(args, Runner()))


@pytest.mark.parametrize(("name", "valid"), spellings.DATASETS.items())
def test_datasets(name: str, *, valid: bool, tmp_path: Path) -> None:
    assert accepts(lambda: loaded(tmp_path / "a", f'root = "{name}"')) == valid
    assert accepts(lambda: loaded(tmp_path / "b", f'adopt_from = ["{name}"]')) == valid
    assert accepts(lambda: names.check_dataset(name)) == valid
    limits = LIMITS.but(adopt_from=(name,))
    assert accepts(limit("dataset", name, limits)) == valid


@pytest.mark.parametrize(("option", "valid"), spellings.MOUNT_OPTIONS.items())
def test_mount_options(option: str, *, valid: bool) -> None:
    assert accepts(lambda: mount_options.check_options((option,))) == valid
    capability = csi_pb2.VolumeCapability(
        mount={"mount_flags": [option]}, access_mode={"mode": "SINGLE_NODE_WRITER"}
    )
    assert (not volume_capabilities.problem(capability)) == valid


def test_the_csi_plugin_has_the_same_patterns() -> None:
    """It is a program of its own, without zfsilod's library."""
    assert ids.ID.pattern == validation.ID.pattern
    assert volume_capabilities.FLAG.pattern == spellings.MOUNT_OPTION
    assert volume_capabilities.MOUNT_FLAGS == mount_options.OPTIONS
    assert csi_config.ZONE.pattern == config.ZONE.pattern

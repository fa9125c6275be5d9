"""The contract, dbus/org.zfsilo1.xml: zfsilod serves exactly it, and it is fully documented."""

from __future__ import annotations

import asyncio
import configparser
import itertools
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.dbus_fixture import CONTRACT, GIB, POLICY, BusFixture, on_private_bus
from zfsilod.api.dbus.contract import (
    ACTION,
    HOST,
    INTROSPECTABLE,
    KINDS,
    MANAGER,
    OPERATION,
    REPLICATION_POLICY,
    ROOT,
    SNAPSHOT,
    SNAPSHOT_POLICY,
    VOLUME,
    escape,
    interfaces,
    path_of,
    split,
    unescape,
)
from zfsilod.api.dbus.methods import QUERIES, RUNS
from zfsilod.api.dbus.mutations import MUTATIONS, make_request
from zfsilod.api.dbus.options import OPTIONS
from zfsilod.api.dbus.properties import READERS
from zfsilod.model.errors import BY_NAME
from zfsilod.security.authorization import ACTIONS, DESTROY, MANAGE, READ

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INTERFACES = (MANAGER, VOLUME, SNAPSHOT, SNAPSHOT_POLICY, REPLICATION_POLICY, HOST, OPERATION)
SAMPLES = {
    "s": "text",
    "as": ("a", "b"),
    "a{ss}": (("a", "b"),),
    "t": 1,
    "u": 1,
    "b": True,
}


def written() -> dict[str, ET.Element]:
    """Return the interfaces of the contract, with comments."""
    builder = ET.TreeBuilder(insert_comments=True)
    tree = ET.parse(CONTRACT, ET.XMLParser(target=builder)).getroot()
    return {interface.attrib["name"]: interface for interface in tree.iter("interface")}


def shape(element: ET.Element) -> Any:
    """Return an element without comments and white space, for comparison."""
    parts = [shape(child) for child in element if isinstance(child.tag, str)]
    return (element.tag, dict(element.attrib), parts)


def members() -> Iterator[tuple[str, ET.Element, str]]:
    """Yield interface, member and the comment in front of it."""
    for name, interface in written().items():
        comment = ""
        for child in interface:
            if isinstance(child.tag, str):
                yield name, child, comment
                comment = ""
            else:
                comment = child.text or ""


MEMBERS = [
    pytest.param(interface, element, comment, id=f"{interface}.{element.attrib['name']}")
    for interface, element, comment in members()
]


@pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="needs dbus-daemon")
async def test_introspection_is_the_contract(tmp_path: Path) -> None:
    """Every kind of object has exactly its interface of the contract, and the standard ones."""
    async with on_private_bus(tmp_path) as fixture:
        client = await fixture.client()
        made = await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, {})
        data = path_of("volume", "data")
        await client.done(data, VOLUME, "Snapshot", "sa{sv}", "monday", {})
        nightly: tuple[Any, ...] = ("nightly", "daily", "7x1d", {})
        await client.done(ROOT, MANAGER, "CreateSnapshotPolicy", "sssa{sv}", *nightly)
        hourly: tuple[Any, ...] = ("hourly", "other", "hourly", {})
        await client.done(ROOT, MANAGER, "CreateReplicationPolicy", "sssa{sv}", *hourly)
        contract = written()
        for path, name in (
            (ROOT, MANAGER),
            (path_of("volume", "data"), VOLUME),
            (path_of("snapshot", "monday"), SNAPSHOT),
            (path_of("policy", "nightly"), SNAPSHOT_POLICY),
            (path_of("replication", "hourly"), REPLICATION_POLICY),
            (path_of("host", "take"), HOST),
            (made, OPERATION),
        ):
            served = await introspect(fixture, path)
            elements = {
                interface.attrib["name"]: interface for interface in served.iter("interface")
            }
            assert shape(elements.pop(name)) == shape(contract.pop(name))
            standard = {"Peer", "Introspectable", "Properties"}
            if path == ROOT:
                standard.add("ObjectManager")
            assert set(elements) == {f"org.freedesktop.DBus.{interface}" for interface in standard}
        assert contract == {}


async def introspect(fixture: BusFixture, path: str) -> ET.Element:
    """Return the introspection of an object."""
    client = await fixture.client()
    (xml,) = await client.call(path, INTROSPECTABLE, "Introspect")
    return ET.fromstring(xml)


@pytest.mark.parametrize(("interface", "element", "comment"), MEMBERS)
def test_every_member_is_documented(interface: str, element: ET.Element, comment: str) -> None:
    """A comment before every member describes it, with all arguments, options and errors."""
    name = element.attrib["name"]
    words = " ".join(comment.split())
    assert words.startswith(f"{name}: ")
    arguments = [argument.attrib["name"] for argument in element.iter("arg")]
    assert re.findall(r"@(\w+):", words) == arguments
    if element.tag != "method":
        return
    assert "Errors: " in words
    described, _sep, errors = words.partition("Errors: ")
    assert set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", errors)) <= set(BY_NAME)
    allowed = dict(re.findall(r"(\w+) \((b|s|t|u|as|a\{ss\})\): ", described))
    mutation = MUTATIONS.get(f"{interface}.{name}")
    if mutation is not None:
        assert allowed == {argument: OPTIONS[argument].signature for argument in mutation.options}
    assert allowed == {argument: OPTIONS[argument].signature for argument in allowed}


def test_the_table_of_actions_agrees_with_the_contract() -> None:
    annotated = {
        f"{interface}.{element.attrib['name']}": annotation.attrib["value"]
        for interface, element, _comment in members()
        for annotation in element.iter("annotation")
        if annotation.attrib["name"] == ACTION
    }
    expected = {name: action for name, action in ACTIONS.items() if name.startswith("org.zfsilo1.")}
    assert annotated == expected


def test_polkit_knows_every_action() -> None:
    page = ET.parse(CONTRACT.with_suffix(".policy")).getroot()
    assert {element.attrib["id"] for element in page.iter("action")} == set(ACTIONS.values())
    defaults = {part.text for element in page.iter("defaults") for part in element}
    assert defaults <= {"auth_admin", "auth_admin_keep"}  # all need a password


def test_every_interface_is_documented() -> None:
    """Every interface is described."""
    text = CONTRACT.read_text()
    for name in INTERFACES:
        assert f"{name}: " in text
    assert set(written()) == set(INTERFACES)
    assert set(KINDS.values()) == set(INTERFACES) - {MANAGER}


def test_every_method_is_served_and_guarded() -> None:
    """Every method is in one table, and is annotated with the action that its caller needs."""
    methods = {f"{i}.{m}" for i in INTERFACES for m in interfaces()[i].methods}
    served = [*MUTATIONS, *QUERIES, *RUNS]
    assert sorted(methods) == sorted(served)
    for interface, element, _comment in members():
        if element.tag == "method":
            (action,) = (a.attrib for a in element.iter("annotation") if a.attrib["name"] == ACTION)
            assert action["value"] in (READ, MANAGE, DESTROY)
            changes = f"{interface}.{element.attrib['name']}" in {**MUTATIONS, **RUNS}
            assert not (changes and action["value"] == READ)


def test_every_property_has_a_reader() -> None:
    """Every property has one reader."""
    known = {name: set(interfaces()[name].properties) for name in INTERFACES}
    assert {name: set(readers) for name, readers in READERS.items()} == known


@pytest.mark.parametrize("method", sorted(MUTATIONS))
def test_every_mutation_makes_its_request(method: str) -> None:
    """Arguments and options are fields of the request."""
    mutation = MUTATIONS[method]
    given_options = {
        OPTIONS[option].field or option: SAMPLES[OPTIONS[option].signature]
        for option in mutation.options
    }
    request = make_request(mutation, list(mutation.arguments), given_options)
    for name, value in given_options.items():
        assert getattr(request, name) == value
    interface, _dot, name = method.rpartition(".")
    signature = interfaces()[interface].methods[name].input
    assert signature.endswith("a{sv}")
    own = 0 if interface == MANAGER else 1
    arguments = signature.removesuffix("a{sv}").replace("as", "s")
    assert len(arguments) == len(mutation.arguments) - own


@pytest.mark.skipif(not shutil.which("xmllint"), reason="needs xmllint")
@pytest.mark.parametrize("page", [CONTRACT, POLICY], ids=lambda page: page.name)
def test_xmllint(page: Path) -> None:
    """The files are valid XML."""
    assert subprocess.check_output(["xmllint", "--noout", page], stderr=subprocess.STDOUT) == b""


def test_activation() -> None:
    """A call starts the daemon through systemd only."""
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(CONTRACT.with_suffix(".service"))
    assert dict(parser["D-BUS Service"]) == {
        "Name": "org.zfsilo1",
        "Exec": "/bin/false",
        "User": "root",
        "SystemdService": "zfsilod.service",
    }


@pytest.mark.parametrize(
    ("name", "label"),
    [("data", "data"), ("d.1", "d_2e1"), ("1d", "_31d"), ("a-b_c", "a_2db_5fc"), ("", "_")],
)
def test_escape_as_systemd_does(name: str, label: str) -> None:
    """The examples of sd_bus_path_encode(3)."""
    assert escape(name) == label


@given(st.text(min_size=1))
def test_paths_are_reversible(name: str) -> None:
    """A path contains only valid characters, and is decoded to its name."""
    path = path_of("volume", name)
    assert re.fullmatch("[A-Za-z0-9_/]+", path)
    assert split(path) == ("volume", name)


@given(st.text("abz019_", min_size=1))
def test_only_one_path_leads_to_a_name(label: str) -> None:
    """A label that `escape` does not return is not decoded."""
    parts = split(f"{ROOT}/volume/{label}")
    assert (parts is not None) == (escape(unescape(label)) == label != "_")


@pytest.mark.skipif(
    not (shutil.which("dbus-daemon") and shutil.which("busctl")),
    reason="needs dbus-daemon and busctl",
)
async def test_the_example_of_the_manual_page_waits_for_an_operation(tmp_path: Path) -> None:
    lines = CONTRACT.read_text().partition("A script without signals")[2].splitlines()[1:]
    script = "\n".join(itertools.takewhile(lambda line: line.startswith("      "), lines))
    async with on_private_bus(tmp_path) as fixture:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-euc", script),
            env=os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": fixture.address},
            stdout=subprocess.PIPE,
        )
        out, _none = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, out) == (0, b's "DONE"\n')
        assert fixture.host.facts.names("zvol") == ["tank/zfsilo/data"]

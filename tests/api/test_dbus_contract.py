"""The contract, dbus/org.zfsilo1.xml: what is served equals it, and it documents all of it."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.dbus_setup import CONTRACT, GIB, POLICY, House, house
from zfsilod.api.dbus.contract import (
    ACTION,
    HOST,
    INTROSPECTABLE,
    KINDS,
    MANAGER,
    OPERATION,
    ROOT,
    SNAPSHOT,
    VOLUME,
    escape,
    interfaces,
    path_of,
    split,
    unescape,
)
from zfsilod.api.dbus.methods import MUTATIONS, OPTIONS, QUERIES, make_request
from zfsilod.api.dbus.properties import READERS
from zfsilod.model.errors import BY_NAME
from zfsilod.security.authorization import ACTIONS, DESTROY, MANAGE, READ

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OURS = (MANAGER, VOLUME, SNAPSHOT, HOST, OPERATION)
SAMPLES = {
    "s": "text",
    "as": ("a", "b"),
    "a{ss}": (("a", "b"),),
    "t": 1,
    "u": 1,
    "b": True,
}


def written() -> dict[str, ET.Element]:
    """Return the interfaces as they are written, comments included."""
    builder = ET.TreeBuilder(insert_comments=True)
    tree = ET.parse(CONTRACT, ET.XMLParser(target=builder)).getroot()
    return {each.attrib["name"]: each for each in tree.iter("interface")}


def shape(element: ET.Element) -> Any:
    """Return an element without comments and white space, ready to compare."""
    parts = [shape(each) for each in element if isinstance(each.tag, str)]
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
    """Each kind of object answers exactly what is written, and the standard interfaces."""
    async with house(tmp_path) as home:
        client = await home.client()
        made = await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, {})
        data = path_of("volume", "data")
        await client.done(data, VOLUME, "Snapshot", "sa{sv}", "monday", {})
        contract = written()
        for path, name in (
            (ROOT, MANAGER),
            (path_of("volume", "data"), VOLUME),
            (path_of("snapshot", "monday"), SNAPSHOT),
            (path_of("host", "take"), HOST),
            (made, OPERATION),
        ):
            served = await introspect(home, path)
            found = {each.attrib["name"]: each for each in served.iter("interface")}
            assert shape(found.pop(name)) == shape(contract.pop(name))
            standard = {"Peer", "Introspectable", "Properties"}
            if path == ROOT:
                standard.add("ObjectManager")
            assert set(found) == {f"org.freedesktop.DBus.{each}" for each in standard}
        assert contract == {}


async def introspect(home: House, path: str) -> ET.Element:
    """Return what an object says of itself."""
    client = await home.client()
    (xml,) = await client.call(path, INTROSPECTABLE, "Introspect")
    return ET.fromstring(xml)


@pytest.mark.parametrize(("interface", "element", "comment"), MEMBERS)
def test_every_member_is_documented(interface: str, element: ET.Element, comment: str) -> None:
    """Each member is described in front of it, with all its arguments, options and errors."""
    name = element.attrib["name"]
    words = " ".join(comment.split())
    assert words.startswith(f"{name}: ")
    arguments = [each.attrib["name"] for each in element.iter("arg")]
    assert re.findall(r"@(\w+):", words) == arguments
    if element.tag != "method":
        return
    assert "Errors: " in words
    described, _sep, errors = words.partition("Errors: ")
    assert set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", errors)) <= set(BY_NAME)
    allowed = dict(re.findall(r"(\w+) \((b|s|t|u|as|a\{ss\})\): ", described))
    mutation = MUTATIONS.get(f"{interface}.{name}")
    if mutation is not None:
        assert allowed == {each: OPTIONS[each].signature for each in mutation.options}
    assert allowed == {each: OPTIONS[each].signature for each in allowed}


def test_the_table_of_actions_is_what_the_page_says() -> None:
    annotated = {
        f"{interface}.{element.attrib['name']}": each.attrib["value"]
        for interface, element, _comment in members()
        for each in element.iter("annotation")
        if each.attrib["name"] == ACTION
    }
    ours = {name: action for name, action in ACTIONS.items() if name.startswith("org.zfsilo1.")}
    assert annotated == ours


def test_polkit_knows_every_action() -> None:
    page = ET.parse(CONTRACT.with_suffix(".policy")).getroot()
    assert {each.attrib["id"] for each in page.iter("action")} == set(ACTIONS.values())
    defaults = {part.text for each in page.iter("defaults") for part in each}
    assert defaults <= {"auth_admin", "auth_admin_keep"}  # nobody may without a password


def test_every_interface_is_documented() -> None:
    """The page itself and each interface say what they are."""
    text = CONTRACT.read_text()
    for name in OURS:
        assert f"{name}: " in text
    assert set(written()) == set(OURS)
    assert set(KINDS.values()) == set(OURS) - {MANAGER}


def test_every_method_is_served_and_guarded() -> None:
    """The tables have each method once, and each names the action that its caller needs."""
    methods = {f"{i}.{m}" for i in OURS for m in interfaces()[i].methods}
    assert methods == set(MUTATIONS) | set(QUERIES)
    assert not set(MUTATIONS) & set(QUERIES)
    for interface, element, _comment in members():
        if element.tag == "method":
            (action,) = (a.attrib for a in element.iter("annotation") if a.attrib["name"] == ACTION)
            assert action["value"] in (READ, MANAGE, DESTROY)
            changes = f"{interface}.{element.attrib['name']}" in MUTATIONS
            assert not (changes and action["value"] == READ)


def test_every_property_is_read() -> None:
    """The readers have each property once."""
    known = {name: set(interfaces()[name].properties) for name in OURS}
    assert {name: set(readers) for name, readers in READERS.items()} == known


@pytest.mark.parametrize("method", sorted(MUTATIONS))
def test_every_mutation_makes_its_verb(method: str) -> None:
    """The fields that a method fills are the fields that its request has."""
    mutation = MUTATIONS[method]
    given_options = {
        OPTIONS[each].field or each: SAMPLES[OPTIONS[each].signature] for each in mutation.options
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
    """The pages are clean XML."""
    assert subprocess.check_output(["xmllint", "--noout", page], stderr=subprocess.STDOUT) == b""


def test_activation() -> None:
    """A call starts the daemon through systemd, and by no other way."""
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
    """sd_bus_path_encode(3): what is no letter, and a digit in front, is in hexadecimal."""
    assert escape(name) == label


@given(st.text(min_size=1))
def test_paths_are_reversible(name: str) -> None:
    """A path is made of what D-Bus allows, and leads back to its name."""
    path = path_of("volume", name)
    assert re.fullmatch("[A-Za-z0-9_/]+", path)
    assert split(path) == ("volume", name)


@given(st.text("abz019_", min_size=1))
def test_only_one_path_leads_to_a_name(label: str) -> None:
    """A label that `escape` would not make leads nowhere."""
    found = split(f"{ROOT}/volume/{label}")
    assert (found is not None) == (escape(unescape(label)) == label != "_")

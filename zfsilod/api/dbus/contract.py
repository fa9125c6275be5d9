"""The D-Bus contract as the dispatcher uses it, read from dbus/org.zfsilo1.xml.

The page is the only place that says what can be called, with which types and by whom;
introspection is answered from it too, so the two cannot differ.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import NamedTuple

from zfsilod.security.authorization import ACTIONS

NAME = "org.zfsilo1"
MANAGER, VOLUME, SNAPSHOT, HOST, OPERATION = (
    f"{NAME}.{each}" for each in ("Manager", "Volume", "Snapshot", "Host", "Operation")
)
ACTION = f"{NAME}.Action"
EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"

PEER, INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER = (
    f"org.freedesktop.DBus.{each}"
    for each in ("Peer", "Introspectable", "Properties", "ObjectManager")
)
STANDARD = """<node>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object" type="o"/>
      <arg name="interfaces_and_properties" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>"""

ROOT = "/org/zfsilo1"
KINDS = {
    "host": HOST,
    "operation": OPERATION,
    "snapshot": SNAPSHOT,
    "volume": VOLUME,
}  # the collections below ROOT
NODES = ("/", "/org", *(f"{ROOT}/{kind}" for kind in KINDS))  # have no interface of ours
DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


class Method(NamedTuple):
    """What a method takes and answers, and the action that its caller needs."""

    interface: str
    name: str
    takes: str
    answers: str
    action: str


class Property(NamedTuple):
    """The type of a property, and whether its changes are told: true, false or const."""

    signature: str
    emits: str


class Interface(NamedTuple):
    """An interface, and its part of the introspection."""

    name: str
    methods: dict[str, Method]
    properties: dict[str, Property]
    xml: str


@cache
def interfaces() -> dict[str, Interface]:
    """Return all interfaces, ours and the standard ones, by name."""
    parsed = [ET.fromstring(text) for text in (STANDARD, page())]  # noqa: S314 - our own files
    found = [_interface(each) for tree in parsed for each in tree.iter("interface")]
    return {each.name: each for each in found}


def page() -> str:
    """Return the contract: it lies beside this file when installed, else in the source tree."""
    installed = Path(__file__).with_name(f"{NAME}.xml")
    source = Path(__file__).parents[3] / "dbus" / installed.name
    return (installed if installed.exists() else source).read_text()


def introspection(names: tuple[str, ...], children: list[str] | None) -> str:
    """Return what Introspect answers for an object with these interfaces (children None: many)."""
    parts = [interfaces()[name].xml for name in names]
    if children is None:
        parts.append("  <!-- too many children: page with ListVolumes -->\n")
    parts += [f'  <node name="{name}"/>\n' for name in children or ()]
    return f"{DOCTYPE}<node>\n{''.join(parts)}</node>\n"


def offered(path: str) -> tuple[str, ...]:
    """Return the interfaces at a path, by its form: whether there is such an object shows later."""
    if path == ROOT:
        return (MANAGER, OBJECT_MANAGER, PROPERTIES, INTROSPECTABLE, PEER)
    found = split(path)
    if found:
        return (KINDS[found[0]], PROPERTIES, INTROSPECTABLE, PEER)
    return (INTROSPECTABLE, PEER) if path in NODES else ()


def path_of(kind: str, name: str) -> str:
    """Return the object path of a volume, host or operation."""
    return f"{ROOT}/{kind}/{escape(name)}"


def split(path: str) -> tuple[str, str] | None:
    """Return kind and id of a path as `path_of` makes it, or None."""
    kind, slash, label = path.removeprefix(f"{ROOT}/").partition("/")
    name = unescape(label) if slash and kind in KINDS else ""
    return (kind, name) if name and path == path_of(kind, name) else None


def escape(name: str) -> str:
    """Return a name as an element of a path, as sd_bus_path_encode(3) does."""
    raw = name.encode().decode("latin-1")  # one character for each byte
    return re.sub("^[0-9]|[^A-Za-z0-9]", lambda odd: f"_{ord(odd[0]):02x}", raw) or "_"


def unescape(label: str) -> str:
    """Undo `escape`; what it never makes comes out as anything."""
    raw = re.sub("_([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), label)
    return raw.encode("latin-1", "replace").decode(errors="replace")


def _interface(element: ET.Element) -> Interface:
    name = element.attrib["name"]
    methods = (_method(name, each) for each in element.iter("method"))
    properties = {
        each.attrib["name"]: Property(
            each.attrib["type"], _annotations(each).get(EMITS_CHANGED, "true")
        )
        for each in element.iter("property")
    }
    element.tail = "\n"
    text = "  " + ET.tostring(element, encoding="unicode")
    xml = re.sub(r"\n(\s*\n)+", "\n", text)  # where the comments were
    return Interface(name, {each.name: each for each in methods}, properties, xml)


def _method(interface: str, element: ET.Element) -> Method:
    takes, answers = (
        "".join(arg.attrib["type"] for arg in element.iter("arg") if arg.attrib["direction"] == way)
        for way in ("in", "out")
    )
    name = element.attrib["name"]
    # What has no action is for nobody but root: polkit knows none of that name.
    action = ACTIONS.get(f"{interface}.{name}", f"{NAME}.none")
    return Method(interface, name, takes, answers, action)


def _annotations(element: ET.Element) -> dict[str, str]:
    return {each.attrib["name"]: each.attrib["value"] for each in element.iter("annotation")}

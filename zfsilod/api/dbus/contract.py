"""The D-Bus contract: interfaces, methods and properties, read from dbus/org.zfsilo1.xml.

The dispatcher checks calls against it and answers introspection from it, so the two cannot differ.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import NamedTuple

from zfsilod.security.authorization import ACTIONS

NAME = "org.zfsilo1"
MANAGER, VOLUME, SNAPSHOT, SNAPSHOT_POLICY, REPLICATION_POLICY, HOST, OPERATION = (
    f"{NAME}.{kind}"
    for kind in (
        "Manager",
        "Volume",
        "Snapshot",
        "SnapshotPolicy",
        "ReplicationPolicy",
        "Host",
        "Operation",
    )
)
ACTION = f"{NAME}.Action"
EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"

PEER, INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER = (
    f"org.freedesktop.DBus.{interface}"
    for interface in ("Peer", "Introspectable", "Properties", "ObjectManager")
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
    "policy": SNAPSHOT_POLICY,
    "replication": REPLICATION_POLICY,
    "snapshot": SNAPSHOT,
    "volume": VOLUME,
}  # the collections below ROOT
NODES = ("/", "/org", *(f"{ROOT}/{kind}" for kind in KINDS))  # without an interface of zfsilo
DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


class Method(NamedTuple):
    """A method: its signatures, and the polkit action that its caller needs."""

    interface: str
    name: str
    input: str
    output: str
    action: str


class Property(NamedTuple):
    """The type of a property, and its EmitsChangedSignal annotation: true, false or const."""

    signature: str
    emits: str


class Interface(NamedTuple):
    """An interface, and its XML for introspection."""

    name: str
    methods: dict[str, Method]
    properties: dict[str, Property]
    xml: str


@cache
def interfaces() -> dict[str, Interface]:
    """Return all interfaces, those of zfsilo and the standard ones, by name."""
    trees = [ET.fromstring(text) for text in (STANDARD, contract_xml())]  # noqa: S314 - own files
    parsed = [_interface(element) for tree in trees for element in tree.iter("interface")]
    return {interface.name: interface for interface in parsed}


def contract_xml() -> str:
    """Return org.zfsilo1.xml, installed beside this file or in the source tree."""
    installed = Path(__file__).with_name(f"{NAME}.xml")
    source = Path(__file__).parents[3] / "dbus" / installed.name
    return (installed if installed.exists() else source).read_text()


def introspection(names: tuple[str, ...], children: list[str] | None) -> str:
    """Return the introspection of an object; children None: too many to list."""
    parts = [interfaces()[name].xml for name in names]
    if children is None:
        parts.append("  <!-- too many children: use ListVolumes -->\n")
    parts += [f'  <node name="{name}"/>\n' for name in children or ()]
    return f"{DOCTYPE}<node>\n{''.join(parts)}</node>\n"


def interfaces_at(path: str) -> tuple[str, ...]:
    """Return the interfaces of a path by its form; whether an object exists is not checked."""
    if path == ROOT:
        return (MANAGER, OBJECT_MANAGER, PROPERTIES, INTROSPECTABLE, PEER)
    parts = split(path)
    if parts:
        return (KINDS[parts[0]], PROPERTIES, INTROSPECTABLE, PEER)
    return (INTROSPECTABLE, PEER) if path in NODES else ()


def path_of(kind: str, name: str) -> str:
    """Return the object path of a resource."""
    return f"{ROOT}/{kind}/{escape(name)}"


def split(path: str) -> tuple[str, str] | None:
    """Return kind and id of a path of the form that `path_of` returns, or None."""
    kind, slash, label = path.removeprefix(f"{ROOT}/").partition("/")
    name = unescape(label) if slash and kind in KINDS else ""
    return (kind, name) if name and path == path_of(kind, name) else None


def escape(name: str) -> str:
    """Return a name as an element of a path, encoded like sd_bus_path_encode(3)."""
    raw = name.encode().decode("latin-1")  # one character per byte
    return re.sub("^[0-9]|[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):02x}", raw) or "_"


def unescape(label: str) -> str:
    """Undo `escape`; for a label that `escape` never returns, the result is arbitrary."""
    raw = re.sub("_([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), label)
    return raw.encode("latin-1", "replace").decode(errors="replace")


def _interface(element: ET.Element) -> Interface:
    name = element.attrib["name"]
    methods, properties = {}, {}
    for item in element.iter("method"):
        method, signatures = item.attrib["name"], {"in": "", "out": ""}
        for argument in item.iter("arg"):
            signatures[argument.attrib["direction"]] += argument.attrib["type"]
        # polkit has no action of the name "none": such a method is for root only.
        action = ACTIONS.get(f"{name}.{method}", f"{NAME}.none")
        methods[method] = Method(name, method, signatures["in"], signatures["out"], action)
    for item in element.iter("property"):
        notes = {note.attrib["name"]: note.attrib["value"] for note in item.iter("annotation")}
        emits = notes.get(EMITS_CHANGED, "true")
        properties[item.attrib["name"]] = Property(item.attrib["type"], emits)
    element.tail = "\n"
    text = "  " + ET.tostring(element, encoding="unicode")
    xml = re.sub(r"\n(\s*\n)+", "\n", text)  # the blank lines that the comments leave
    return Interface(name, methods, properties, xml)

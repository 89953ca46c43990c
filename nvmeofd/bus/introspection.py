"""The interfaces of the service, read from the hand-written XML file. What that file says is what is served."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from nvmeofd.bus.messages import INTROSPECTABLE, OBJECT_MANAGER, PEER

FILE_NAME = "org.nvmeofd1.xml"
_EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"
_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

# A path that only leads to objects has these.
_ON_EVERY_PATH = (PEER, INTROSPECTABLE)
# Every object has these; the root has the last one, too.
_STANDARD = """<node>
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
      <arg name="object_path" type="o"/>
      <arg name="interfaces" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object_path" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>
"""


@dataclass(frozen=True, slots=True)
class Method:
    signature: str  # of what goes in
    reply: str  # of what comes out


@dataclass(frozen=True, slots=True)
class Property:
    """``emits`` is true, const or false, as EmitsChangedSignal has it."""

    signature: str
    emits: str


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    methods: Mapping[str, Method]
    properties: Mapping[str, Property]
    signals: Mapping[str, str]  # name to signature
    xml: str

    @property
    def announced(self) -> tuple[str, ...]:
        """The properties whose changes are announced."""
        return tuple(name for name, one in self.properties.items() if one.emits == "true")

    @property
    def live(self) -> frozenset[str]:
        """The properties that are looked up when asked for."""
        return frozenset(name for name, one in self.properties.items() if one.emits == "false")


def _parse(text: str) -> dict[str, Interface]:
    root = ET.fromstring(text)  # noqa: S314 - our own files; comments, where the documentation is, are dropped
    found: dict[str, Interface] = {}
    for node in root.findall("interface"):
        ET.indent(node, level=1)
        found[node.attrib["name"]] = Interface(
            name=node.attrib["name"],
            methods={
                one.attrib["name"]: Method(
                    "".join(arg.attrib["type"] for arg in one.findall("arg") if arg.get("direction", "in") == "in"),
                    "".join(arg.attrib["type"] for arg in one.findall("arg") if arg.get("direction", "in") == "out"),
                )
                for one in node.findall("method")
            },
            properties={
                one.attrib["name"]: Property(one.attrib["type"], _annotation(one, _EMITS_CHANGED, "true"))
                for one in node.findall("property")
            },
            signals={
                one.attrib["name"]: "".join(arg.attrib["type"] for arg in one.findall("arg"))
                for one in node.findall("signal")
            },
            xml="  " + ET.tostring(node, encoding="unicode").strip() + "\n",
        )
    return found


def _annotation(node: ET.Element, name: str, default: str) -> str:
    values = [one.attrib["value"] for one in node.findall("annotation") if one.attrib["name"] == name]
    return values[0] if values else default


STANDARD = _parse(_STANDARD)
INTERFACES = _parse(files("nvmeofd.bus").joinpath(FILE_NAME).read_text(encoding="utf-8"))


def document(interface: Interface | None, children: Iterable[str], *, is_root: bool = False) -> str:
    """The introspection of one object, or of a path that only leads to objects (``interface`` is None)."""
    shown = [] if interface is None else [interface]
    shown += [STANDARD[name] for name in standard_interfaces(interface, is_root=is_root)]
    nodes = "".join(f'  <node name="{child}"/>\n' for child in children)
    return f"{_DOCTYPE}<node>\n{''.join(one.xml for one in shown)}{nodes}</node>\n"


def standard_interfaces(interface: Interface | None, *, is_root: bool) -> tuple[str, ...]:
    """The standard interfaces of an object, or of a path that only leads to objects."""
    if interface is None:
        return _ON_EVERY_PATH
    return tuple(name for name in STANDARD if is_root or name != OBJECT_MANAGER)

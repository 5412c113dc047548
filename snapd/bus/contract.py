# SPDX-License-Identifier: MIT
"""Owns the contract: the interfaces in ``dbus/*.xml`` as frozen values, and what ``Introspect`` answers.

It knows no handlers and no objects.

- The XML is the only source: what is not in it does not exist.
- It is parsed once for each process.
- Documentation stays in the files; ``Introspect`` answers without it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType
from xml.etree import ElementTree as ET  # reads only files that are installed with this one
from xml.sax.saxutils import quoteattr

from snapd.bus.names import MANAGER_INTERFACE, OBJECT_MANAGER_INTERFACE

_PACKAGE = Path(__file__).resolve().parent.parent
_EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"

_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

# Source: D-Bus specification, "Standard Interfaces".
_STANDARD_XML = """
<node>
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
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
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
      <arg name="interfaces" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>
"""


class EmitsChanged(StrEnum):
    """What a client may rely on when a property changes."""

    TRUE = "true"
    INVALIDATES = "invalidates"
    CONST = "const"
    FALSE = "false"


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its name and a single complete type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Method:
    """A method, its arguments in the order of the message."""

    name: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]

    @property
    def in_signature(self) -> str:
        return "".join(each.type for each in self.inputs)

    @property
    def out_signature(self) -> str:
        return "".join(each.type for each in self.outputs)


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal, its arguments in the order of the message."""

    name: str
    arguments: tuple[Argument, ...]

    @property
    def signature(self) -> str:
        return "".join(each.type for each in self.arguments)


@dataclass(frozen=True, slots=True)
class Property:
    """A property that can be read; the contract has none that can be set."""

    name: str
    type: str
    emits_changed: EmitsChanged


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface and its members by name, in the order of the file."""

    name: str
    methods: Mapping[str, Method]
    signals: Mapping[str, Signal]
    properties: Mapping[str, Property]


class ContractError(Exception):
    """The installed XML is not what this program was made for."""


@cache
def contract() -> Mapping[str, Interface]:
    """Return the interfaces of the service by name, from the installed files or else from the source tree.

    Raises: ContractError when files are missing or say something that is not understood here.
    """
    interfaces: dict[str, Interface] = {}
    for file in sorted(_directory().glob("org.domsnap1.*.xml")):
        for interface in parse(file.read_text(encoding="utf-8"), str(file)):
            if interface.name in interfaces:
                raise ContractError(f"{file}: interface {interface.name} is described twice")
            interfaces[interface.name] = interface
    if not interfaces:
        raise ContractError(f"{_directory()} holds no interface; the installation is incomplete")
    return MappingProxyType(interfaces)


@cache
def standard() -> Mapping[str, Interface]:
    """Return Peer, Introspectable, Properties and ObjectManager by name."""
    return MappingProxyType({each.name: each for each in parse(_STANDARD_XML, "the standard interfaces")})


def parse(text: str, source: str) -> list[Interface]:
    """Read the interfaces of one document; ``source`` names it in errors.

    Raises: ContractError
    """
    try:
        root = ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise ContractError(f"{source}: {error}") from error
    return [_interface(each, source) for each in root.findall("interface")]


def introspect_xml(interfaces: Iterable[Interface], children: Iterable[str]) -> str:
    """Return the introspection document of an object.

    The standard interfaces are added: Peer, Introspectable and Properties everywhere, ObjectManager where the Manager is.

    Args:
        interfaces: those of the object itself; none for a path between objects.
        children: the next path element of each object or path below, escaped.
    """
    own = list(interfaces)
    has_manager = any(each.name == MANAGER_INTERFACE for each in own)
    shared = [each for each in standard().values() if has_manager or each.name != OBJECT_MANAGER_INTERFACE]
    lines = ["<node>"]
    for interface in shared + own:
        lines += _interface_lines(interface)
    lines += [f" <node name={quoteattr(child)}/>" for child in children]
    lines.append("</node>")
    return _DOCTYPE + "\n".join(lines) + "\n"


def _directory() -> Path:
    installed = _PACKAGE / "dbus"
    return installed if installed.is_dir() else _PACKAGE.parent / "dbus"


def _interface(element: ET.Element, source: str) -> Interface:
    name = element.get("name", "")
    where = f"{source}: {name}"
    methods = [_method(each, where) for each in element.findall("method")]
    signals = [Signal(each.get("name", ""), _arguments(each, where)) for each in element.findall("signal")]
    properties = [_property(each, where) for each in element.findall("property")]
    members = [each.name for each in methods] + [each.name for each in signals] + [each.name for each in properties]
    if not name or "" in members or len(set(members)) != len(members):
        raise ContractError(f"{where}: a name is missing or is used twice")
    return Interface(
        name,
        MappingProxyType({each.name: each for each in methods}),
        MappingProxyType({each.name: each for each in signals}),
        MappingProxyType({each.name: each for each in properties}),
    )


def _method(element: ET.Element, where: str) -> Method:
    return Method(
        element.get("name", ""),
        _arguments(element, where, direction="in"),
        _arguments(element, where, direction="out"),
    )


def _arguments(element: ET.Element, where: str, direction: str | None = None) -> tuple[Argument, ...]:
    chosen = [each for each in element.findall("arg") if direction is None or each.get("direction") == direction]
    arguments = tuple(Argument(each.get("name", ""), each.get("type", "")) for each in chosen)
    if any(not each.name or not each.type for each in arguments):
        raise ContractError(f"{where}.{element.get('name')}: an argument has no name or no type")
    return arguments


def _property(element: ET.Element, where: str) -> Property:
    name = element.get("name", "")
    if element.get("access") != "read":
        raise ContractError(f"{where}.{name}: only properties that are read are supported")
    values = [each.get("value", "") for each in element.findall("annotation") if each.get("name") == _EMITS_CHANGED]
    try:
        emits = EmitsChanged(values[0] if values else "true")
    except ValueError as error:
        raise ContractError(f"{where}.{name}: {values[0]!r} is no value of {_EMITS_CHANGED}") from error
    return Property(name, element.get("type", ""), emits)


def _interface_lines(interface: Interface) -> list[str]:
    lines = [f" <interface name={quoteattr(interface.name)}>"]
    for method in interface.methods.values():
        arguments = [(each, ' direction="in"') for each in method.inputs] + [
            (each, ' direction="out"') for each in method.outputs
        ]
        lines += _member_lines("method", method.name, arguments)
    for signal in interface.signals.values():
        lines += _member_lines("signal", signal.name, [(each, "") for each in signal.arguments])
    for each in interface.properties.values():
        lines.append(f'  <property name={quoteattr(each.name)} type={quoteattr(each.type)} access="read">')
        lines.append(f'   <annotation name="{_EMITS_CHANGED}" value="{each.emits_changed}"/>')
        lines.append("  </property>")
    return [*lines, " </interface>"]


def _member_lines(kind: str, name: str, arguments: list[tuple[Argument, str]]) -> list[str]:
    lines = [f"  <{kind} name={quoteattr(name)}>"]
    lines += [f"   <arg name={quoteattr(each.name)} type={quoteattr(each.type)}{direction}/>" for each, direction in arguments]
    return [*lines, f"  </{kind}>"]

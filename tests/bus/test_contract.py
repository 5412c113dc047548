# SPDX-License-Identifier: MIT
"""The contract: complete, documented, parsed as written, and shown by Introspect in a form that tools understand."""

import importlib
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from snapd.bus import contract, names
from snapd.errors import concrete_errors

DBUS = Path(__file__).parents[2] / "dbus"
OURS = {
    "org.domsnap1.Manager": names.MANAGER_INTERFACE,
    "org.domsnap1.Domain": names.DOMAIN_INTERFACE,
    "org.domsnap1.Snapshot": names.SNAPSHOT_INTERFACE,
    "org.domsnap1.Job": names.JOB_INTERFACE,
}
EXTERNAL_TOOL_TIMEOUT_S = 30


def test_the_interfaces_are_those_that_the_program_names() -> None:
    assert set(contract.contract()) == set(OURS.values()) == set(OURS)


def test_it_is_parsed_once() -> None:
    assert contract.contract() is contract.contract()


def test_signatures_are_put_together_in_order() -> None:
    manager = contract.contract()[names.MANAGER_INTERFACE]
    create = manager.methods["CreateSnapshot"]
    assert (create.in_signature, create.out_signature) == ("ssa{sv}", "o")
    assert manager.methods["ListSnapshots"].out_signature == "a(ostssub)"
    assert manager.signals["JobRemoved"].signature == "os"
    job = contract.contract()[names.JOB_INTERFACE]
    assert job.methods["Wait"].out_signature == job.signals["Completed"].signature == "ssso"


def test_constant_properties_are_marked() -> None:
    emits = {name: each.emits_changed for name, each in contract.contract()[names.MANAGER_INTERFACE].properties.items()}
    assert emits == {"Version": "const", "QemuImgVersion": "const", "DomainCount": "true", "JobCount": "true"}


@pytest.mark.parametrize("library", ["dbus_next", "dbus_fast"])
def test_every_type_is_one_complete_type(library: str) -> None:
    tree = importlib.import_module(f"{library}.signature").SignatureTree
    for interface in (*contract.contract().values(), *contract.standard().values()):
        methods = [each for method in interface.methods.values() for each in (*method.inputs, *method.outputs)]
        signals = [each for signal in interface.signals.values() for each in signal.arguments]
        types = [each.type for each in methods + signals] + [each.type for each in interface.properties.values()]
        assert [len(tree(each).types) for each in types] == [1] * len(types)


def documented(file: Path) -> list[tuple[str, ET.Element]]:
    """Return each interface and member with the comment right before it."""
    root = ET.fromstring(file.read_text(), ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))
    found = []
    for parent in (root, *root.iter("interface")):
        comment = ""
        for element in parent:
            if not isinstance(element.tag, str):
                comment = element.text or ""
            else:
                found.append((comment, element))
                comment = ""
    return found


@pytest.mark.parametrize("interface", OURS)
def test_every_member_argument_and_property_is_documented(interface: str) -> None:
    for comment, element in documented(DBUS / f"{interface}.xml"):
        name = element.attrib["name"]
        head, _, text = comment.partition("@since:")
        assert head.strip().startswith(f"{name}:"), name
        assert len(text.split()) > 3, name
        described = re.findall(r"^ *@(\w+): \S", head, re.MULTILINE)
        assert described == [each.attrib["name"] for each in element.findall("arg")] or element.tag == "interface", name


def test_every_error_that_the_documentation_names_exists() -> None:
    codes = {each.code for each in concrete_errors()}
    named = set()
    for interface in OURS:
        for comment, _ in documented(DBUS / f"{interface}.xml"):
            for sentence in re.findall(r"Errors(?: [a-z ]+)?: ([^.]+)\.", comment):
                named |= set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b|\bProtected\b|\bInterrupted\b", sentence))
    unknown = named - codes - {"CreateSnapshot", "RevertSnapshot", "DeleteSnapshot"}
    assert named > {"NoSuchDomain", "MonitorLost"}
    assert not unknown


@pytest.mark.parametrize("interface", OURS)
def test_what_introspect_shows_is_the_contract(interface: str) -> None:
    shown = contract.parse(contract.introspect_xml([contract.contract()[interface]], []), "introspection")
    assert shown[-1] == contract.contract()[interface]
    standard = {each.name for each in shown[:-1]}
    expected = set(contract.standard())
    if interface != names.MANAGER_INTERFACE:
        expected.remove(names.OBJECT_MANAGER_INTERFACE)
    assert standard == expected


def test_introspect_shows_children_and_no_prose() -> None:
    text = contract.introspect_xml([], ["vm1", "a_26b"])
    assert [each.get("name") for each in ET.fromstring(text).findall("node")] == ["vm1", "a_26b"]
    assert "<!--" not in contract.introspect_xml(contract.contract().values(), [])


@pytest.mark.parametrize("library", ["dbus_next", "dbus_fast"])
def test_both_libraries_read_what_introspect_shows(library: str) -> None:
    node = importlib.import_module(f"{library}.introspection").Node
    text = contract.introspect_xml(contract.contract().values(), ["domain", "job"])
    parsed = node.parse(text)
    expected = sorted([*contract.contract(), *contract.standard()])
    assert sorted(each.name for each in parsed.interfaces) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<node", "unclosed token"),
        ("<node><interface name='a.b'><method name='M'/><signal name='M'/></interface></node>", "used twice"),
        ("<node><interface name='a.b'><method/></interface></node>", "a name is missing"),
        ("<node><interface name='a.b'><method name='M'><arg type='s' direction='in'/></method></interface></node>", "a.b.M"),
        ("<node><interface name='a.b'><property name='P' type='s' access='readwrite'/></interface></node>", "a.b.P"),
    ],
)
def test_a_broken_contract_is_refused_with_the_place(text: str, complaint: str) -> None:
    with pytest.raises(contract.ContractError, match=f"^here: .*{complaint}"):
        contract.parse(text, "here")


def test_the_policy_and_the_activation_file_are_for_our_name(tmp_path: Path) -> None:
    policy = ET.parse(DBUS / "org.domsnap1.conf").getroot()
    assert [each.get("own") for each in policy.iterfind("policy[@user='root']/allow")] == [names.BUS_NAME]
    assert policy.find("policy[@context='default']/allow[@own]") is None
    configuration = tmp_path / "bus.conf"
    configuration.write_text(
        '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"'
        ' "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">'
        f"<busconfig><type>session</type><listen>unix:path={tmp_path}/bus</listen>"
        f"<include>{DBUS / 'org.domsnap1.conf'}</include></busconfig>"
    )
    command = ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bus:
        try:
            assert bus.stdout is not None
            assert f"{tmp_path}/bus" in bus.stdout.readline()
        finally:
            bus.terminate()
            bus.wait(EXTERNAL_TOOL_TIMEOUT_S)
    assert f"Name={names.BUS_NAME}\n" in (DBUS / "org.domsnap1.service").read_text()

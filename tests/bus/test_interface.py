"""The interface description is what the service does, member by member, and it is documented in full."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeofd import errors, requests
from nvmeofd.bus.dbusnext import variant
from nvmeofd.bus.introspection import INTERFACES
from nvmeofd.bus.messages import INTROSPECTABLE, OBJECT_MANAGER, PEER, PROPERTIES
from nvmeofd.bus.objects import Exported, JobObject, ManagerObject, SubsystemObject, VolumeObject
from nvmeofd.bus.paths import ROOT, SERVICE_NAME, job_path, subsystem_path, volume_path
from tests.bus.fake import NQN, FakeCore, subsystem, volume
from tests.bus.harness import REPOSITORY, PrivateBus, body, busctl, client, service

FILE = REPOSITORY / "dbus" / "org.nvmeofd1.xml"
KINDS = {
    "org.nvmeofd1.Manager": ROOT,
    "org.nvmeofd1.Subsystem": subsystem_path(NQN),
    "org.nvmeofd1.Volume": volume_path("/srv/one"),
    "org.nvmeofd1.Job": job_path(1),
}
# What every method is called with here. A new method needs its line.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Stage": (NQN, "nsid.1", ["tcp://127.0.0.1"], "/srv/two", {"fsck": variant("b", False)}),
    "Unstage": ("/srv/two", {}),
    "Disconnect": (NQN, {}),
    "ListUsers": (),
    "Cancel": (),
}


def normal(node: ET.Element) -> Any:
    """An interface or member without white space and comments, and without regard to the order of members."""
    children = [normal(child) for child in node]
    if node.tag == "interface":
        children.sort()
    return node.tag, sorted(node.attrib.items()), children


def interfaces(text: str) -> dict[str, Any]:
    root = ET.fromstring(text)
    return {node.attrib["name"]: normal(node) for node in root.findall("interface")}


def full() -> FakeCore:
    core = FakeCore()
    core.connect(subsystem())
    core.add_volume(volume("/srv/one"))
    core.add_job(1)
    return core


def test_the_file_is_the_one_in_the_package() -> None:
    packaged = REPOSITORY / "nvmeofd" / "bus" / FILE.name
    assert packaged.read_bytes() == FILE.read_bytes()
    assert set(INTERFACES) == set(KINDS) == set(interfaces(FILE.read_text()))


async def test_introspection_is_the_file(bus: PrivateBus) -> None:
    described = interfaces(FILE.read_text())
    async with service(bus, full()), client(bus) as caller:
        for name, path in KINDS.items():
            (text,) = await caller.call(path, INTROSPECTABLE, "Introspect")
            served = interfaces(text)
            assert served.pop(name) == described[name]
            standard = {PEER, PROPERTIES, INTROSPECTABLE} | ({OBJECT_MANAGER} if path == ROOT else set())
            assert set(served) == standard


async def test_paths_that_lead_to_objects(bus: PrivateBus) -> None:
    core = full()
    core.add_volume(volume("/srv/one1"))
    async with service(bus, core), client(bus) as caller:

        async def nodes(path: str) -> list[str]:
            (text,) = await caller.call(path, INTROSPECTABLE, "Introspect")
            return [node.attrib["name"] for node in ET.fromstring(text).findall("node")]

        assert await nodes("/") == ["org"]
        assert await nodes("/org") == ["nvmeofd1"]
        assert await nodes(ROOT) == ["job", "subsystem", "volume"]
        assert await nodes(f"{ROOT}/volume") == ["_2fsrv_2fone", "_2fsrv_2fone1"]
        assert await nodes(volume_path("/srv/one")) == []


async def test_every_method_answers(bus: PrivateBus) -> None:
    async with service(bus, full()), client(bus) as caller:
        for name, path in KINDS.items():
            for member, method in INTERFACES[name].methods.items():
                reply = await caller.call(path, name, member, method.signature, *ARGUMENTS[member])
                assert len(reply) == len(
                    ET.fromstring(INTERFACES[name].xml).findall(f"method[@name='{member}']/arg[@direction='out']")
                )


async def test_every_property_answers(bus: PrivateBus) -> None:
    async with service(bus, full()), client(bus) as caller:
        for name, path in KINDS.items():
            (everything,) = await caller.call(path, PROPERTIES, "GetAll", "s", name)
            assert set(everything) == set(INTERFACES[name].properties)
            for member, described in INTERFACES[name].properties.items():
                (value,) = await caller.call(path, PROPERTIES, "Get", "ss", name, member)
                assert value == everything[member]
                assert value.signature == described.signature


async def test_every_signal_is_sent(bus: PrivateBus) -> None:
    """Completed is the only one; that it comes with what it says is tested with the objects."""
    assert {name: set(one.signals) for name, one in INTERFACES.items() if one.signals} == {
        "org.nvmeofd1.Job": {"Completed"}
    }
    core = full()
    async with service(bus, core), client(bus) as caller:
        await caller.subscribe()
        core.finish_job(1)
        signal = await caller.signal("Completed")
        assert signal.signature == INTERFACES["org.nvmeofd1.Job"].signals["Completed"]
        assert body(signal) == [True, "", ""]


async def test_busctl_understands_it(bus: PrivateBus) -> None:
    async with service(bus, full()):
        for name, path in KINDS.items():
            done = await busctl(bus, "introspect", SERVICE_NAME, path, name)
            assert done.returncode == 0, done.stderr
            for member in (*INTERFACES[name].methods, *INTERFACES[name].properties, *INTERFACES[name].signals):
                assert re.search(rf"^\.{member} ", done.stdout, re.MULTILINE), (member, done.stdout)


@pytest.mark.parametrize("kind", [ManagerObject, SubsystemObject, VolumeObject, JobObject])
def test_every_member_is_there_and_none_besides(kind: type[Exported]) -> None:
    ours = {name for name in vars(kind) if name[0].isupper()}
    assert ours == {*kind.interface.methods, *kind.interface.properties}
    assert kind.waiting <= set(kind.interface.methods)
    assert {one.emits for one in kind.interface.properties.values()} <= {"true", "false", "const"}


def documented(parent: ET.Element) -> Iterator[tuple[ET.Element, str]]:
    """Every interface, method, property and signal with the comment before it."""
    comment = ""
    for child in parent:
        if callable(child.tag):  # ET.Comment
            comment = child.text or ""
            continue
        yield child, comment
        comment = ""
        if child.tag == "interface":
            yield from documented(child)


def test_every_member_is_documented() -> None:
    root = ET.parse(FILE, ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))).getroot()
    members = list(documented(root))
    assert len(members) > 30
    for node, comment in members:
        name = node.attrib["name"]
        assert re.match(rf"\s*{re.escape(name)}:\n", comment), f"{name} has no comment"
        arguments = [one.attrib["name"] for one in node.findall("arg")] if node.tag != "interface" else []
        assert re.findall(r"^\s*@(\w+):", comment, re.MULTILINE) == (
            ["short_description"] if node.tag == "interface" else arguments
        ), name
        assert len(comment.split()) > 2, name


def test_every_option_and_error_is_documented() -> None:
    text = FILE.read_text()
    named = set(
        re.findall(r'"([a-z]+(?:-[a-z]+)+|fstype|format|fsck|type|timeout)"', Path(requests.__file__).read_text())
    )
    for option in named - {"x-systemd", "if-empty"}:
        assert re.search(rf"\b{option}\b", text), option
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.NvmeofdError) and error is not errors.NvmeofdError:
            assert re.search(rf"^    {error.__name__} ", text, re.MULTILINE), error


@pytest.mark.skipif(shutil.which("gdbus-codegen") is None, reason="gdbus-codegen is not installed")
def test_gdbus_codegen_understands_it(tmp_path: Path) -> None:
    subprocess.run(["gdbus-codegen", "--generate-docbook=doc", str(FILE)], cwd=tmp_path, check=True)
    text = "".join(one.read_text() for one in tmp_path.glob("doc-*.xml"))
    assert "Connect every address that is not connected yet" in text

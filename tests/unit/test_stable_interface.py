"""Nothing that clients rely on goes away or changes, see docs/api-versioning.md."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pytest

from nvmeofd import errors
from nvmeofd.errors import InvalidArgument, NvmeofdError
from nvmeofd.requests import parse_disconnect, parse_stage, parse_unstage
from nvmeofd.typed import Typed

ROOT = Path(__file__).parents[2]
PROMISED = [
    line.split()
    for line in Path(__file__).with_name("stable-interface.txt").read_text().splitlines()
    if not line.startswith("#")
]
NQN = "nqn.2026-11.org.example:stable"
WRONG = "(y)"  # no option is of this type


def promised(kind: str) -> list[list[str]]:
    found = [words for word, *words in PROMISED if word == kind]
    assert found
    return found


def test_members() -> None:
    present = []
    for interface in ET.parse(ROOT / "dbus/org.nvmeofd1.xml").getroot().findall("interface"):
        for member in interface:
            name = f"{interface.get('name')}.{member.get('name')}"
            if member.tag == "property":
                present.append([member.tag, name, member.get("type", "")])
            elif member.tag == "method":
                present.append([member.tag, name, arguments(member, "in"), arguments(member, "out")])
            else:
                present.append([member.tag, name, arguments(member, "out")])
    members = [words for words in PROMISED if words[0] in ("method", "property", "signal")]
    assert members
    assert [words for words in members if words not in present] == []


def arguments(member: ET.Element, direction: str) -> str:
    return (
        "".join(one.get("type", "") for one in member.findall("arg") if one.get("direction", "out") == direction) or "-"
    )


def call(method: str, options: Mapping[str, Typed]) -> None:
    if method == "Stage":
        parse_stage(NQN, "nsid.1", ["tcp://192.0.2.1"], "/srv/volume", options)
    elif method == "Unstage":
        parse_unstage("/srv/volume", options)
    else:
        assert method == "Disconnect"
        parse_disconnect(NQN, options)


@pytest.mark.parametrize(("method", "key", "signature"), promised("option"))
def test_options(method: str, key: str, signature: str) -> None:
    """It is known (an unknown one is refused as such), and of this type."""
    with pytest.raises(InvalidArgument) as refusal:
        call(method, {key: Typed(WRONG, None)})
    assert str(refusal.value).startswith(f"option {key}: expected ")
    assert f"(D-Bus type {signature})" in str(refusal.value)


def test_errors() -> None:
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, NvmeofdError)]
    present = {errors.dbus_name(one()) for one in classes}
    assert {name for (name,) in promised("error")} - present == set()

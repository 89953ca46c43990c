"""org.nvmeofd1(5) is made from the interface as it is, and says all of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nvmeofd import errors, requests
from nvmeofd.model import UserKind
from scripts import dbus_man
from scripts.dbus_man import Comment, Items, Paragraph

ROOT = Path(__file__).parents[2]
XML = ROOT / "dbus" / "org.nvmeofd1.xml"
PAGE = ROOT / "man" / "org.nvmeofd1.5"


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text()


def test_the_page_is_that_of_the_interface() -> None:
    page = PAGE.read_text()
    assert page == dbus_man.page(XML.read_text(), dbus_man.dated(page)), "run make manual"


def test_interfaces_and_members_are_on_the_page(text: str) -> None:
    sections = dict(re.findall(r"(?ms)^\.Sh ([^\n]*)\n(.*?)(?=^\.Sh |\Z)", text))
    for interface in ET.parse(XML).getroot().findall("interface"):
        section = sections[interface.attrib["name"]]
        declared, _, explained = section.partition("\n.Ed\n")
        for member in interface:
            name, kind = member.attrib["name"], member.get("type", "")
            if member.tag == "property":
                assert f"  readonly {kind} {name};" in declared
                assert f"\n.It Ic {name} Pq {kind} , " in explained
                continue
            assert f"\n  {name}(" in declared
            explanation = re.search(rf"(?ms)^\.Ss {name}\n(.*?)(?=^\.Ss |\Z)", explained)
            assert explanation is not None, name
            for argument in member.findall("arg"):
                name, kind = argument.attrib["name"], argument.attrib["type"]
                assert re.search(rf"\b{re.escape(kind)} {name}(,|\);)$", declared, re.MULTILINE), name
                assert f".It Fa {name}\n" in explanation[1]


def test_options_errors_and_kinds_of_users_are_on_the_page(text: str) -> None:
    options = re.findall(r'"([a-z]+(?:-[a-z]+)+|fstype|format|fsck|type|timeout)"', Path(requests.__file__).read_text())
    for option in {*options, "force"} - {"x-systemd", "if-empty"}:
        assert re.search(rf"^\.It (Cm .*)?Cm {option} (,|Po)|^\.It Cm .* , {option} ", text, re.MULTILINE), option
    for error in errors.NvmeofdError.__subclasses__():
        assert f"\n.It Li {error.__name__}\n" in text
    for kind in UserKind:
        assert f"\n.It Cm {kind}\n" in text


def test_date_changes_only_with_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.5"
    page.write_text(dbus_man.page(XML.read_text(), "January 1, 1970"))
    dbus_man.main(XML, page)
    assert dbus_man.dated(page.read_text()) == "January 1, 1970"
    page.write_text(page.read_text() + ".Pp\nmore\n")
    dbus_man.main(XML, page)
    assert dbus_man.dated(page.read_text()) != "January 1, 1970"
    assert "\nmore\n" not in page.read_text()


def test_comments() -> None:
    comment = """
      Stage:
      @one: The first.
      @two: The second,
        which is longer.

      A paragraph
      of two lines.

        type (s, block): what
          it is
        /path/of  an object
    """
    assert dbus_man.parse_comment(comment) == Comment(
        {"one": "The first.", "two": "The second, which is longer."},
        (
            Paragraph("A paragraph of two lines."),
            Items((("type (s, block)", "what it is"), ("/path/of", "an object"))),
        ),
    )


@pytest.mark.parametrize("comment", ["", "no name\n\ntext", "\nName:\n\n  neither of both"])
def test_comments_that_make_no_sense(comment: str) -> None:
    with pytest.raises(ValueError, match=r"a name and a colon|neither a colon"):
        dbus_man.parse_comment(comment)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("One. Two: three.", ["One.", "Two: three."]),
        ("As in mount(8), or umount(8).", ["As in", ".Xr mount 8 ,", "or", ".Xr umount 8 ."]),
        ("(see mount(8)) and so on", ["(see", ".Xr mount 8 )", "and so on"]),
        (".Dd is no macro here", [r"\&.Dd is no macro here"]),
        (r"\xNN, -1 and read-only…", [r"\exNN, \-1 and read-only\[u2026]"]),
    ],
)
def test_prose(source: str, lines: list[str]) -> None:
    assert list(dbus_man.prose(source)) == lines


@pytest.mark.parametrize(
    ("source", "macro"),
    [
        ("timeout (u, configuration)", "Cm timeout Po u , configuration Pc"),
        ("host-nqn (s), host-id (s)", "Cm host-nqn Po s Pc , Cm host-id Po s Pc"),
        ("one, two (i, -1)", r"Cm one , Cm two Po i , \-1 Pc"),
        ("/org/nvmeofd1/job/NUMBER", "Li /org/nvmeofd1/job/NUMBER"),
        ("It", r"Li \&It"),
    ],
)
def test_terms(source: str, macro: str) -> None:
    assert dbus_man.term(source) == macro

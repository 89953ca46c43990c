#!/usr/bin/python3
"""Writes the manual page of a D-Bus interface from its XML description: scripts/dbus_man.py INTERFACE.xml PAGE.5

All text is that of the comments in the XML, which are in the form that gdbus-codegen(1) reads; only the frame of the
page is here. Within a comment, what is indented more than the text around it is a list: "term: meaning", or term and
meaning with two blanks between.
"""

from __future__ import annotations

import datetime
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

HEAD = r"""
.\" Made from dbus/org.nvmeofd1.xml by scripts/dbus_man.py, "make manual". Do not edit.
.Dd {date}
.Dt ORG.NVMEOFD1 5
.Os
.Sh NAME
.Nm org.nvmeofd1
.Nd D-Bus interface of nvmeofd
"""
TAIL = r"""
.Sh FILES
.Bl -tag -width Ds
.It Pa /usr/share/dbus-1/interfaces/org.nvmeofd1.xml
this description, for programs
.It Pa /usr/share/dbus-1/system.d/org.nvmeofd1.conf
who may call
.El
.Sh EXAMPLES
Stage a volume over two paths, formatting it if it is blank.
The numbers are those of the addresses and of the options that follow:
.Bd -literal -offset indent
# busctl --timeout=90 call org.nvmeofd1 /org/nvmeofd1 \e
    org.nvmeofd1.Manager Stage 'ssassa{sv}' \e
    nqn.2026-11.org.example:shelf1 \e
    uuid.298f5754-a5d7-51e9-a836-b1e8fdc445b5 \e
    2 tcp://192.0.2.1 tcp://192.0.2.2 \e
    /srv/vol1 \e
    2 format s if-empty timeout u 60
os "/org/nvmeofd1/volume/_2fsrv_2fvol1" "/dev/nvme0n1"
.Ed
.Pp
Who uses its subsystem?
.Bd -literal -offset indent
# busctl call org.nvmeofd1 \e
    /org/nvmeofd1/subsystem/nqn_2e2026_2d11_2eorg_2eexample_3ashelf1 \e
    org.nvmeofd1.Subsystem ListUsers
a(sss) 1 "mount" "/dev/nvme0n1" "/srv/vol1"
.Ed
.Pp
Unstage it, without options:
.Bd -literal -offset indent
# busctl --timeout=90 call org.nvmeofd1 /org/nvmeofd1 \e
    org.nvmeofd1.Manager Unstage 'sa{sv}' /srv/vol1 0
b true
.Ed
.Sh SEE ALSO
.Xr busctl 1 ,
.Xr sd_bus_path_encode 3 ,
.Xr nvmeofd.conf 5 ,
.Xr nvmeofctl 8 ,
.Xr nvmeofd 8
"""

EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"
CHANGES = {"const": "constant", "true": "changes announced", "false": "looked up when asked for"}
# Where a sentence ends, which mdoc wants to be told with a new line.
SENTENCE = re.compile(r"(?<=[.?!:]) +(?=[A-Z])")
REFERENCE = re.compile(r"\b([a-z][\w.-]*)\(([1-9])\)([.,;:)]*)")
ITEM = re.compile(r"(\S+) {2,}(.+)|(.+?): +(.+)", re.DOTALL)
# "type (s, filesystem)", and several of them with commas between.
OPTION = re.compile(r"([a-z][a-z-]*) \(([^)]+)\)|([a-z][a-z-]*)")
MACRO = re.compile(r"[A-Z][a-z]|%[A-Z]")


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list of terms and their meanings."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Comment:
    """What is said of an interface or member: its arguments by name, then the text."""

    arguments: Mapping[str, str]
    blocks: tuple[Paragraph | Items, ...]


# ---- reading


def parse_comment(text: str) -> Comment:
    """The comment before an interface or member: its name, "@argument: meaning" lines, text.

    Raises:
        ValueError: it does not begin with a name.
    """
    head, *rest = paragraphs(text)
    name, *lines = head.split("\n")
    if not re.fullmatch(r"[\w.]+:", name):
        raise ValueError(f"a comment begins with {name!r}, not with a name and a colon")
    arguments: dict[str, str] = {}
    for line in lines:
        if found := re.fullmatch(r"@(\w+): *(.*)", line):
            arguments[found[1]] = found[2]
        else:
            arguments[list(arguments)[-1]] += f" {line.strip()}"
    return Comment(arguments, tuple(map(parse_block, rest)))


def paragraphs(comment: str) -> list[str]:
    return re.split(r"\n[ \t]*\n", cleandoc(comment))


def at_errors(content: list[Paragraph | Items]) -> tuple[list[Paragraph | Items], list[Paragraph | Items]]:
    """What comes before the paragraph that begins with "Errors:", and the rest, without that word."""
    for number, block in enumerate(content):
        if isinstance(block, Paragraph) and (found := re.match(r"Errors: *(.)(.*)", block.text)):
            return content[:number], [Paragraph(found[1].upper() + found[2]), *content[number + 1 :]]
    return content, []


def parse_block(text: str) -> Paragraph | Items:
    """A paragraph; or a list, if all of it is indented."""
    lines = text.split("\n")
    if not all(line.startswith(" ") for line in lines):
        return Paragraph(" ".join(text.split()))
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    entries: list[str] = []
    for line in lines:
        if line[margin] == " ":
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line.strip())
    return Items(tuple(map(_item, entries)))


def _item(entry: str) -> tuple[str, str]:
    found = ITEM.fullmatch(entry)
    if found is None:
        raise ValueError(f"neither a colon nor two blanks in {entry!r}")
    return (found[1], found[2]) if found[1] else (found[3], found[4])


def described(parent: ET.Element) -> Iterator[tuple[ET.Element, Comment]]:
    """The children, each with the comment before it. Raises ValueError for one without."""
    text = ""
    for child in parent:
        if callable(child.tag):  # a comment
            text = child.text or ""
        elif child.tag in ("interface", "method", "property", "signal"):
            yield child, parse_comment(text)
            text = ""


# ---- writing


def escape(text: str) -> str:
    """Text with nothing in it that is a command to roff."""
    text = re.sub(r"(?<![\w-])-(?=\d)", r"\\-", text.replace("\\", r"\e"))
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return rf"\&{text}" if text[:1] in (".", "'") else text


def prose(text: str) -> Iterator[str]:
    """Lines of text: each sentence on its own, references to other pages as macros."""
    for sentence in SENTENCE.split(" ".join(text.split())):
        position = 0
        for found in REFERENCE.finditer(sentence):
            if before := sentence[position : found.start()].strip():
                yield escape(before)
            yield " ".join([".Xr", found[1], found[2], *found[3]])
            position = found.end()
        if after := sentence[position:].strip():
            yield escape(after)


def words(text: str) -> str:
    """Text as arguments of a macro."""
    return " ".join(rf"\&{word}" if MACRO.fullmatch(word) else word for word in escape(text).split())


def term(text: str) -> str:
    """The head of a list entry. Of options the names stand out."""
    if not re.fullmatch(rf"(?:{OPTION.pattern})(?:, (?:{OPTION.pattern}))*", text):
        return f"Li {words(text)}"
    parts = []
    for found in OPTION.finditer(text):
        name, kind = found[1] or found[3], found[2]
        parts.append(f"Cm {name} Po {words(kind).replace(',', ' ,')} Pc" if kind else f"Cm {name}")
    return " , ".join(parts)


def blocks(content: Sequence[Paragraph | Items], *, first: bool = False) -> Iterator[str]:
    """Paragraphs and lists; the ``first`` one of a section needs no space before it."""
    for block in content:
        if isinstance(block, Items):
            yield from listing((term(head), meaning) for head, meaning in block.entries)
        else:
            if not first:
                yield ".Pp"
            yield from prose(block.text)
        first = False


def listing(entries: Iterator[tuple[str, str]]) -> Iterator[str]:
    yield ".Bl -tag -width Ds"
    for head, meaning in entries:
        yield f".It {head}"
        yield from prose(meaning)
    yield ".El"


def declaration(member: ET.Element) -> list[str]:
    """A member as org.freedesktop.systemd1(5) shows one, but for the blanks before it."""
    name = member.attrib["name"]
    if member.tag == "property":
        access = {"read": "readonly"}.get(member.attrib["access"], member.attrib["access"])
        return [f"{access} {member.attrib['type']} {name};"]
    arguments = [
        f"{one.get('direction', ''):{3 if 'direction' in one.attrib else 0}} {one.attrib['type']} {one.attrib['name']}"
        for one in member.findall("arg")
    ]
    indent = f",\n{' ' * (len(name) + 1)}"
    return f"{name}({indent.join(map(str.lstrip, arguments))});".split("\n")


def interface(node: ET.Element, comment: Comment) -> Iterator[str]:
    """One section for one interface."""
    yield f".Sh {node.attrib['name']}"
    summary = comment.arguments.get("short_description", "")
    yield from prose(f"{summary}.")
    yield from blocks(comment.blocks)
    members = list(described(node))
    yield ".Bd -literal -offset indent"
    for tag, title in (("method", "methods:"), ("signal", "signals:"), ("property", "properties:")):
        if of_kind := [member for member, _ in members if member.tag == tag]:
            yield title
            yield from (f"  {escape(line)}" for member in of_kind for line in declaration(member))
    yield ".Ed"
    for member, about in members:
        if member.tag != "property":
            yield f".Ss {member.attrib['name']}"
            if about.arguments:
                yield from listing((f"Fa {name}", text) for name, text in about.arguments.items())
            yield from blocks(about.blocks, first=not about.arguments)
    properties = [(member, about) for member, about in members if member.tag == "property"]
    if properties:
        yield ".Ss Properties"
        yield ".Bl -tag -width Ds"
        for member, about in properties:
            annotations = {one.attrib["name"]: one.attrib["value"] for one in member.findall("annotation")}
            changes = CHANGES[annotations.get(EMITS_CHANGED, "true")]
            yield f".It Ic {words(member.attrib['name'])} Pq {words(member.attrib['type'])} , {changes}"
            yield from blocks(about.blocks, first=True)
        yield ".El"


def page(xml: str, date: str) -> str:
    """The manual page. ``date`` as mdoc has it: November 25, 2026.

    Raises:
        ValueError: a comment is missing or not in the form that is expected.
        ET.ParseError: it is not XML.
    """
    prologue = re.findall(r"<!--(.*?)-->", xml.partition("<node")[0], re.DOTALL)
    # The last comment before the node: an earlier one is about the file.
    general, errors = at_errors(list(map(parse_block, paragraphs(prologue[-1]))))
    root = ET.fromstring(xml, ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))
    lines = HEAD.format(date=date).strip("\n").split("\n")
    lines += [".Sh DESCRIPTION", *blocks(general, first=True)]
    for node, comment in described(root):
        lines += interface(node, comment)
    if errors:
        lines += [".Sh ERROR NAMES", *blocks(errors, first=True)]
    lines += TAIL.strip("\n").split("\n")
    return "\n".join(lines) + "\n"


def dated(text: str) -> str:
    """The date in a page, empty if there is none."""
    found = re.search(r"(?m)^\.Dd (.+)$", text)
    return found[1] if found else ""


def main(source: Path, target: Path) -> None:
    """Write the page, with a new date only if something else in it is new."""
    xml = source.read_text(encoding="utf-8")
    before = target.read_text(encoding="utf-8") if target.exists() else ""
    if page(xml, dated(before)) != before:
        today = datetime.datetime.now(datetime.UTC)
        target.write_text(page(xml, f"{today:%B} {today.day}, {today.year}"), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} INTERFACE.xml PAGE.5")
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""The documents name what there is: every error, every kind of user, and each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from nvmeofd import errors
from nvmeofd.model import UserKind

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDE = (DOCS / "operators-guide.md").read_text()
ERRORS = {error.__name__ for error in errors.NvmeofdError.__subclasses__()}
SHELL = [
    pytest.param(text, id=f"{file.name}: {name}")
    for file in sorted(DOCS.glob("*.md"))
    for name, text in re.findall(r"(?ms)^```sh (\S+)\n(.*?)^```$", file.read_text())
]


def sections(title: str) -> dict[str, str]:
    """The parts of a section of the guide that are about a name: the names, and what is said of each."""
    section = re.search(rf"(?ms)^## {title}\n(.*?)(?=^## |\Z)", GUIDE)
    assert section is not None
    return dict(re.findall(r"(?ms)^### `(\S+)`\n(.*?)(?=^### |\Z)", section[1]))


def test_every_error_is_explained() -> None:
    explained = sections("Errors")
    assert set(explained) == ERRORS
    for name, text in explained.items():
        meaning, _, action = text.partition("**Next:**")
        assert meaning.strip(), name
        assert action.strip(), name


def test_every_kind_of_user_is_explained() -> None:
    explained = sections("Who holds a subsystem")
    assert set(explained) == set(UserKind)
    for kind, text in explained.items():
        assert re.search(r"(?m)^    \w+", text), f"{kind} has no command"


def test_no_error_is_invented() -> None:
    for file in (ROOT / "README.md", *DOCS.glob("*.md")):
        named = set(re.findall(r"org\.nvmeofd1\.Error\.(\w+)", file.read_text()))
        assert named <= ERRORS, file


def test_every_document_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    assert [
        file.name for file in DOCS.glob("*.md") if f"]({file.name})" not in index and file.name != "README.md"
    ] == []
    assert [page.name for page in (ROOT / "man").iterdir() if f"{page.stem}({page.suffix[1:]})" not in index] == []


@pytest.mark.parametrize("text", SHELL)
def test_shell_is_well_formed(text: str) -> None:
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)

"""Command lines: what is understood, what is refused, and that every option of the interface is there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import nvmeofd
from nvmeofd.ctl.main import main, split
from nvmeofd.ctl.options import BY_VERB, given
from nvmeofd.ctl.outcome import Exit, Failure
from nvmeofd.ctl.verbs import COMMON_FLAGS, VERBS, parser

ROOT = Path(__file__).parents[3]
XML = (ROOT / "dbus/org.nvmeofd1.xml").read_text()
NQN = "nqn.2024-01.org.example:one"
STAGE = [NQN, "nsid.1", "tcp://127.0.0.1", "/srv/one"]


def parse(verb: str, *words: str) -> dict[str, tuple[str, Any]]:
    return given(parser(VERBS[verb]).parse_intermixed_args(list(words)), BY_VERB[verb])


def documented(method: str) -> dict[str, str]:
    """Options of a method in the interface description, with their D-Bus types."""
    comment = XML[XML.index(f"      {method}:\n") :]
    comment = comment[: comment.index("-->")]
    found: dict[str, str] = {}
    # "type (s, filesystem): …", "hdr-digest, data-digest (b, false): …", "host-nqn (s), host-id (s): …"
    for keys, signature in re.findall(r"(?<![\w-])([a-z-]+(?:, [a-z-]+)*) \((as|[subi])(?:, [^)]*)?\)", comment):
        found |= dict.fromkeys(keys.split(", "), signature)
    return found


@pytest.mark.parametrize(
    ("method", "few"),
    [("Stage", {"type", "min-paths", "dhchap-ctrl-secret-file"}), ("Unstage", {"force"}), ("Disconnect", {"timeout"})],
)
def test_every_option_of_the_interface_is_an_option(method: str, few: set[str]) -> None:
    wanted = documented(method)
    assert few <= wanted.keys()
    verb = method.lower()
    assert {one.key: one.signature for one in BY_VERB[verb]} == wanted
    flags = {flag for action in parser(VERBS[verb])._actions for flag in action.option_strings}
    assert {f"--{key}" for key in wanted} <= flags


def test_every_method_of_the_manager_is_a_verb() -> None:
    manager = XML[XML.index('<interface name="org.nvmeofd1.Manager">') :]
    methods = re.findall(r'<method name="(\w+)"', manager[: manager.index("</interface>")])
    assert {method.lower() for method in methods} == {name for name, verb in VERBS.items() if verb.changes}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--format=if-empty"], {"format": ("s", "if-empty")}),
        (["--read-only"], {"read-only": ("b", True)}),
        (["--no-fsck", "--hdr-digest"], {"fsck": ("b", False), "hdr-digest": ("b", True)}),
        (["--mount-options", "a,b", "--mount-options=c"], {"mount-options": ("as", ["a", "b", "c"])}),
        (
            ["--mkfs-options=-L 'a b' -O ^c,d", "--mkfs-options=-q"],
            {"mkfs-options": ("as", ["-L", "a b", "-O", "^c,d", "-q"])},
        ),
        (["--ctrl-loss-tmo", "-1", "--fast-io-fail-tmo=5"], {"ctrl-loss-tmo": ("i", -1), "fast-io-fail-tmo": ("i", 5)}),
        (["--min-paths=2", "--timeout", "120"], {"min-paths": ("u", 2), "timeout": ("u", 120)}),
    ],
)  # fmt: skip
def test_options_of_stage(words: list[str], options: dict[str, Any]) -> None:
    assert parse("stage", *STAGE, *words) == options
    assert parse("stage", *words, *STAGE) == options


def test_options_between_the_arguments() -> None:
    words = [NQN, "nsid.1", "--read-only", "tcp://a", "--fstype=xfs", "tcp://b", "/srv/one"]
    arguments = parser(VERBS["stage"]).parse_intermixed_args(words)
    assert (arguments.NQN, arguments.NAMESPACE) == (NQN, "nsid.1")
    assert (arguments.ADDRESS, arguments.PATH) == (["tcp://a", "tcp://b"], "/srv/one")


@pytest.mark.parametrize(
    ("typed", "path"),
    [("/srv/one/", "/srv/one"), ("/srv/one///", "/srv/one"), ("/", "/"), ("srv/", "srv/"), ("/a//b", "/a//b")],
)
def test_a_slash_at_the_end(typed: str, path: str) -> None:
    before = {"stage": STAGE[:3], "unstage": [], "show": [], "status": []}
    for verb, words in before.items():
        arguments = parser(VERBS[verb]).parse_intermixed_args([*words, typed])
        found = vars(arguments)[VERBS[verb].arguments[-1].name]
        assert found == ([path] if verb == "status" else path)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (STAGE[:3], "PATH"),
        ([*STAGE, "--min-paths=-1"], "--min-paths"),
        ([*STAGE, "--timeout=1e3"], "--timeout"),
        ([*STAGE, "--timeout=٣"], "--timeout"),
        ([*STAGE, f"--timeout={1 << 32}"], "--timeout"),
        ([*STAGE, f"--ctrl-loss-tmo={1 << 31}"], "--ctrl-loss-tmo"),
        ([*STAGE, "--format=always"], "--format"),
        ([*STAGE, "--form=never"], "--form"),  # nothing is abbreviated
        ([*STAGE, "--mkfs-options=-L 'x"], "--mkfs-options"),
        ([*STAGE[:3], "/srv/\udcff"], "UTF-8"),
        ([*STAGE, "--host-nqn=\udcff"], "--host-nqn"),
    ],
)
def test_refused(words: list[str], named: str) -> None:
    with pytest.raises(Failure, match=named) as raised:
        parse("stage", *words)
    assert raised.value.code is Exit.USAGE
    assert "nvmeofctl stage --help" in raised.value.hint


def test_a_secret_is_not_an_argument() -> None:
    with pytest.raises(Failure):
        parse("stage", *STAGE, "--dhchap-secret=DHHC-1:00:confidential:")


def test_split() -> None:
    assert split(["--json", "list", "--quiet"]) == (["--json"], "list", ["--quiet"])
    assert split(["--help"]) == (["--help"], None, [])
    assert split([]) == ([], None, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which verb"),
        (["lst"], "did you mean list"),
        (["\x1b[31m"], "'\\x1b[31m' is no verb"),
        (["--frob", "list"], "--frob"),
        (["list", "extra"], "extra"),
        (["show", "--frob"], "--frob"),
        (["cancel"], "JOB"),
    ],
)
def test_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == Exit.USAGE
    shown = capsys.readouterr()
    assert said in shown.err
    assert "--help" in shown.err
    assert shown.out == ""


def test_interrupted_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("nvmeofd.ctl.main._run", interrupt)
    assert main(["list"]) == Exit.INTERRUPTED


@pytest.mark.parametrize("words", [["--version"], ["--json", "--version"]])
def test_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == f"nvmeofctl {nvmeofd.__version__}\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert verb.summary in overview
        for words in ([name, "--help"], ["--help", name], [name, "-h", "rubbish", "--frob"]):
            assert main(words) == 0
            shown = capsys.readouterr().out
            assert shown.startswith(f"usage: nvmeofctl {name}")
            assert all(f"nvmeofctl {example}" in shown for example in verb.examples)


def test_examples_are_understood() -> None:
    for verb in VERBS.values():
        for example in verb.examples:
            words = example.partition(" | ")[0].split()
            assert words[0] == verb.name
            own = [word for word in words[1:] if word not in COMMON_FLAGS]
            parser(verb).parse_intermixed_args(own)


def test_verbs_are_there() -> None:
    """Each names a function that exists."""
    for verb in VERBS.values():
        assert callable(getattr(import_module(f"nvmeofd.ctl.{verb.does[0]}"), verb.does[1]))

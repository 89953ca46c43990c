"""The configuration files."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd import daemon
from nvmeofd.config import SECTIONS, Config, ConnectConfig, effective
from nvmeofd.configfile import MAX_BYTES, MAX_PROBLEMS, ConfigError, config_files

ROOT = Path(__file__).parents[2]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(tmp_path: Path, text: str) -> Config:
    return Config.load([write(tmp_path / "nvmeofd.conf", text)])


def test_defaults(tmp_path: Path) -> None:
    assert config_files(tmp_path) == []
    assert Config.load([]) == Config()
    config = Config()
    assert (config.log_level, config.timeout, config.queue_limit, config.total_limit) == (logging.INFO, 60, 64, 1024)
    assert config.connect == ConnectConfig(
        ctrl_loss_tmo=1800,
        fast_io_fail_tmo=None,
        reconnect_delay=None,
        keep_alive_tmo=None,
        nr_io_queues=None,
        queue_size=None,
    )


def test_every_key(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
# a comment
; another
[Daemon]
LogLevel=debug

[Operation]
 TimeoutSec = 10
QueueLimit=3
TotalLimit=4
[Connect]
CtrlLossTimeoutSec=-1
FastIOFailTimeoutSec=5
ReconnectDelaySec=2
KeepAliveSec=0
NrIOQueues=8
QueueSize=128
""",
    )
    assert config == Config(
        log_level=logging.DEBUG,
        timeout=10,
        queue_limit=3,
        total_limit=4,
        connect=ConnectConfig(
            ctrl_loss_tmo=-1,
            fast_io_fail_tmo=5,
            reconnect_delay=2,
            keep_alive_tmo=0,
            nr_io_queues=8,
            queue_size=128,
        ),
    )


def test_every_key_is_in_one_section() -> None:
    assert {section: tuple(keys) for section, keys in SECTIONS.items()} == {
        "Daemon": ("LogLevel", "MetricsFile"),
        "Operation": ("TimeoutSec", "QueueLimit", "TotalLimit", "DisconnectDelaySec"),
        "Connect": (
            "CtrlLossTimeoutSec",
            "FastIOFailTimeoutSec",
            "ReconnectDelaySec",
            "KeepAliveSec",
            "NrIOQueues",
            "QueueSize",
        ),
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[Daemon]\nLogLevel=loud", 2, "LogLevel=loud is not one of debug, info, warning, error, critical"),
        ("[Operation]\n\nTimeoutSec=0", 3, "TimeoutSec=0 is not a whole number of seconds between 1 and 86400"),
        ("[Operation]\nTimeoutSec=1min", 2, "TimeoutSec=1min is not a whole number"),
        ("[Operation]\nTimeoutSec=--1", 2, "TimeoutSec=--1 is not"),
        ("[Operation]\nTimeoutSec=1e3", 2, "TimeoutSec=1e3 is not"),
        ("[Operation]\nTimeoutSec=" + "9" * 5000, 2, "TimeoutSec=999"),
        ("[Operation]\nQueueLimit=-1", 2, "QueueLimit=-1 is not a whole number between 1 and 100000"),
        ("[Operation]\nQueueLimit=٣", 2, "QueueLimit=٣ is not"),
        ("[Connect]\nCtrlLossTimeoutSec=-2", 2, "CtrlLossTimeoutSec=-2 is not"),
        ("[Connect]\nQueueSize=15", 2, "QueueSize=15 is not a whole number between 16 and 1024"),
        ("[Connect]\nKeepAliveSec=5 # seconds", 2, "KeepAliveSec=5 # seconds is not"),
        ("[Connect]\nKeepAlive=5", 2, "unknown key KeepAlive in section [Connect], did you mean KeepAliveSec?"),
        ("[Connect]\nkeepalivesec=5", 2, "unknown key keepalivesec in section [Connect], did you mean KeepAliveSec?"),
        ("[Connect]\nSecret=5", 2, "unknown key Secret in section [Connect], known are CtrlLossTimeoutSec, Fast"),
        ("[Daemon]\nTimeoutSec=5", 2, "unknown key TimeoutSec in section [Daemon], it belongs to [Operation]"),
        ("#\n[Deamon]", 2, "unknown section [Deamon], did you mean [Daemon]?"),
        ("[Global]", 1, "unknown section [Global], known are Daemon, Operation, Connect"),
        ("[Daemon", 1, "unknown section [Daemon,"),
        ("[]", 1, "unknown section []"),
        ("LogLevel=info", 1, "LogLevel comes before any section"),
        ("[Daemon]\nLogLevel", 2, "LogLevel is neither a section nor Key=value"),
        ("[Daemon]\nLogLevel=info\nLogLevel=info", 3, "LogLevel is already set in line 2"),
        ("[Daemon]\nLogLevel=info\n[Connect]\n[Daemon]\nLogLevel=info", 5, "LogLevel is already set in line 2"),
        ("[Daemon]\nLog\x1bLevel=info", 2, "unknown key 'Log\\x1bLevel'"),
        ("[Daemon]\n=info", 2, "unknown key "),
    ],
)
def test_refused(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/nvmeofd.conf:{line}: {message}")
    assert len(str(caught.value)) < len(str(tmp_path)) + 400
    assert str(caught.value).isprintable()


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "nvmeofd.conf"
    path.write_bytes(b"[Daemon]\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"nvmeofd\.conf:2: not valid UTF-8"):
        Config.load([path])


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.conf: No such file or directory"):
        Config.load([tmp_path / "absent.conf"])
    with pytest.raises(ConfigError, match=f"{tmp_path}: "):
        Config.load([tmp_path])


def test_something_else_than_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.conf")
    write(tmp_path / "large.conf", "#" * (MAX_BYTES + 1))
    for name, said in (("pipe.conf", "neither a file"), ("large.conf", "larger than")):
        with pytest.raises(ConfigError, match=f"{name}: {said}"):
            Config.load([tmp_path / name])


def test_every_mistake_is_named(tmp_path: Path) -> None:
    one = write(
        tmp_path / "1.conf", "[Daemon]\nLoglevel=info\n[Conect]\nAny=1\n[Operation]\nTimeoutSec=soon\nQueueLimit=0"
    )
    two = write(tmp_path / "2.conf", "[Connect]\nQueueSize=1\n")
    with pytest.raises(ConfigError) as caught:
        Config.load([one, two, tmp_path / "3.conf"])
    assert [problem.removeprefix(f"{tmp_path}/").partition(": ")[0] for problem in caught.value.problems] == [
        "1.conf:2",
        "1.conf:3",
        "1.conf:6",
        "1.conf:7",
        "2.conf:2",
        "3.conf",
    ]
    assert str(caught.value) == f"{caught.value.problems[0]} (and 5 more)"


def test_mistakes_without_end(tmp_path: Path) -> None:
    path = write(tmp_path / "1.conf", "nonsense\n" * 1000)
    with pytest.raises(ConfigError) as caught:
        Config.load([path, path])
    assert len(caught.value.problems) == MAX_PROBLEMS


def test_drop_ins(tmp_path: Path) -> None:
    etc = tmp_path / "etc/nvmeofd"
    main = write(etc / "nvmeofd.conf", "[Operation]\nTimeoutSec=1\nQueueLimit=1\nTotalLimit=1\n")
    drop_ins = etc / "nvmeofd.conf.d"
    late = write(drop_ins / "90-b.conf", "[Operation]\nQueueLimit=3\n[Connect]\nCtrlLossTimeoutSec=\n")
    early = write(drop_ins / "10-z.conf", "[Operation]\nQueueLimit=2\nTimeoutSec=2\n[Connect]\nCtrlLossTimeoutSec=7\n")
    write(drop_ins / "50.conf.bak", "nonsense")
    write(drop_ins / ".hidden.conf", "nonsense")
    (drop_ins / "20-masked.conf").symlink_to("/dev/null")
    assert config_files(tmp_path) == [main, early, drop_ins / "20-masked.conf", late]
    config = Config.load(config_files(tmp_path))
    assert (config.timeout, config.queue_limit, config.total_limit) == (2, 3, 1)
    assert config.connect.ctrl_loss_tmo == 1800  # empty: the default again


def test_drop_ins_without_main_file(tmp_path: Path) -> None:
    path = write(tmp_path / "etc/nvmeofd/nvmeofd.conf.d/a.conf", "[Daemon]\nLogLevel=error")
    assert config_files(tmp_path) == [path]
    assert Config.load(config_files(tmp_path)).log_level == logging.ERROR


def test_drop_ins_of_vendors(tmp_path: Path) -> None:
    """All in the order of their names; a name that is there twice counts once."""
    main = write(tmp_path / "etc/nvmeofd/nvmeofd.conf", "[Operation]\nTimeoutSec=1\n")
    vendor, run, etc = (
        tmp_path / name
        for name in ("usr/lib/nvmeofd/nvmeofd.conf.d", "run/nvmeofd.conf.d", "etc/nvmeofd/nvmeofd.conf.d")
    )
    first = write(etc / "10.conf", "[Operation]\nTimeoutSec=2\n")
    write(vendor / "20.conf", "nonsense")
    masked = write(etc / "20.conf", "")
    write(vendor / "30.conf", "nonsense")
    third = write(run / "30.conf", "[Operation]\nQueueLimit=3\nTimeoutSec=3\n")
    last = write(vendor / "40.conf", "[Operation]\nTimeoutSec=4\n")
    assert config_files(tmp_path) == [main, first, masked, third, last]
    config = Config.load(config_files(tmp_path))
    assert (config.timeout, config.queue_limit) == (4, 3)
    assert {key: str(place) for (_, key), place in config.places.items()} == {
        "TimeoutSec": f"{last}:2",
        "QueueLimit": f"{third}:2",
    }


def test_main_file_that_is_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "etc/nvmeofd").mkdir(parents=True)
    (tmp_path / "etc/nvmeofd/nvmeofd.conf").symlink_to("/nowhere/at/all")
    with pytest.raises(ConfigError, match="No such file"):
        Config.load(config_files(tmp_path))


def refusal(path: Path) -> str:
    try:
        Config.load([path])
    except ConfigError as error:
        return str(error)
    return "accepted"


@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.conf"
    path.write_bytes(content)
    assert refusal(path).startswith((str(path), "accepted"))


KEYS = [(section, key) for section, keys in SECTIONS.items() for key in keys]


@given(st.sampled_from(KEYS), st.text(max_size=30).filter(lambda t: "\n" not in t))
def test_any_value(tmp_path_factory: pytest.TempPathFactory, where: tuple[str, str], value: str) -> None:
    path = tmp_path_factory.getbasetemp() / "value.conf"
    try:
        path.write_text(f"[{where[0]}]\n{where[1]}={value}\n", encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return
    assert refusal(path).startswith((f"{path}:2: {where[1]}", "accepted"))


# Two of each: of a number the least and the most.
WORDS = {"LogLevel": ("debug", "error"), "MetricsFile": ("/run/one.prom", "/var/lib/another.prom")}
VALUES = {
    (section, key): WORDS.get(key) or re.findall(r"between (\S+) and (\S+)", what.accepts)[0]
    for section, keys in SECTIONS.items()
    for key, (_, what) in keys.items()
}


@given(st.dictionaries(st.sampled_from(KEYS), st.booleans()))
def test_what_is_shown_is_the_same_configuration(
    tmp_path_factory: pytest.TempPathFactory, chosen: dict[tuple[str, str], bool]
) -> None:
    path = tmp_path_factory.getbasetemp() / "shown.conf"
    lines = [f"[{section}]\n{key}={VALUES[section, key][high]}" for (section, key), high in chosen.items()]
    config = Config.load([write(path, "\n".join(lines))])
    text = effective(config)
    assert Config.load([write(path, text)]) == config
    assert all(f"# {path}:{2 * number}\n" in text for number in range(1, len(lines) + 1))


# ---- command line


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.conf", "[Operation]\nTimeoutSec=1\n")
    bad = write(tmp_path / "bad.conf", "[Operation]\nTimeout=1\nQueueLimit=none\n")
    assert daemon.main(["--check-config", str(good)]) == 0
    assert capsys.readouterr() == ("", "")
    assert daemon.main(["--check-config", str(good), str(bad)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{bad}:2: unknown key Timeout in section [Operation], did you mean TimeoutSec?",
        f"{bad}:3: QueueLimit=none is not a whole number between 1 and 100000",
    ]


def test_check_config_with_a_strange_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.conf")
    Path(path).write_text("x")
    assert daemon.main(["--check-config", path]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_show_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "etc/nvmeofd/nvmeofd.conf", "[Operation]\n\nTimeoutSec=1\n")
    monkeypatch.setattr("nvmeofd.config.config_files", lambda: config_files(tmp_path))
    assert daemon.main(["--show-config"]) == 0
    shown = capsys.readouterr().out
    assert f"[Operation]\n# {path}:3\nTimeoutSec=1\n# default\nQueueLimit=64\n" in shown
    assert "# left to the kernel\nQueueSize=\n" in shown


def test_arguments_that_exclude_each_other() -> None:
    with pytest.raises(SystemExit) as caught:
        daemon.main(["--show-config", "--check-config"])
    assert caught.value.code == 2


# ---- what is written about the keys


def test_template() -> None:
    """Every key with its default, commented out; with the signs before keys removed it is the defaults."""
    text = (ROOT / "etc/nvmeofd.conf").read_text()
    assert re.findall(r"(?m)^(?!#|\[|$)", text) == []
    keys = re.findall(r"(?m)^#(\S[^=]*)=(.*)$", text)
    assert keys == [(one.key, one.text or "") for one in Config().settings()]
    assert re.findall(r"(?m)^#?\[(.*)\]$", text) == list(SECTIONS)


def test_template_is_the_defaults(tmp_path: Path) -> None:
    text = (ROOT / "etc/nvmeofd.conf").read_text()
    assert load(tmp_path, text).places == {}
    uncommented = load(tmp_path, re.sub(r"(?m)^#(?=\S)", "", text))
    assert uncommented == Config()
    assert len(uncommented.places) == sum(one.text is not None for one in Config().settings())


def test_ranges_in_the_template() -> None:
    text = (ROOT / "etc/nvmeofd.conf").read_text()
    for (_, key), (low, high) in VALUES.items():
        if key not in WORDS:
            comment = re.search(rf"((?:# .*\n)+)#{key}=", text)
            assert comment is not None
            assert f"({low} to {high})" in comment[1], key


def test_manual() -> None:
    text = (ROOT / "man/nvmeofd.conf.5").read_text().replace("\\-", "-")
    sections = re.findall(r"(?ms)^\.Sh SECTION Bq (\S+)\n(.*?)(?=^\.Sh )", text)
    assert [name for name, _ in sections] == list(SECTIONS)
    settings = {(one.section, one.key): one for one in Config().settings()}
    for section, body in sections:
        items = re.findall(r"(?ms)^\.It Cm (\S+) Ns =\n(.*?)(?=^\.It |^\.El)", body)
        assert [key for key, _ in items] == list(SECTIONS[section])
        for key, item in items:
            default = settings[section, key].text
            none = "left to the kernel (" if section == "Connect" else "none "
            assert f"\nDefault: {default or none}" in item, key
            if default is not None:
                assert item.endswith(f"Default: {default}.\n")
            low, high = VALUES[section, key]
            accepts = {"LogLevel": ".Ql critical", "MetricsFile": ".Pa .prom"}.get(key, f"\n{low} to {high}.\n")
            assert accepts in item, key

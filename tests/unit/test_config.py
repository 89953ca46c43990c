"""The configuration files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.config import SECTIONS, Config, ConfigError, ConnectConfig, config_files


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
        ("[Connect]\nKeepAlive=5", 2, "unknown key KeepAlive in section [Connect], known are CtrlLossTimeoutSec,"),
        ("[Connect]\nkeepalivesec=5", 2, "unknown key keepalivesec"),
        ("[Daemon]\nTimeoutSec=5", 2, "unknown key TimeoutSec in section [Daemon], known are LogLevel"),
        ("#\n[Deamon]", 2, "unknown section [Deamon], known are Daemon, Operation, Connect"),
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
    with pytest.raises(ConfigError, match="Is a directory"):
        Config.load([tmp_path])


def test_drop_ins(tmp_path: Path) -> None:
    main = write(tmp_path / "nvmeofd.conf", "[Operation]\nTimeoutSec=1\nQueueLimit=1\nTotalLimit=1\n")
    drop_ins = tmp_path / "nvmeofd.conf.d"
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
    path = write(tmp_path / "nvmeofd.conf.d" / "a.conf", "[Daemon]\nLogLevel=error")
    assert config_files(tmp_path) == [path]
    assert Config.load(config_files(tmp_path)).log_level == logging.ERROR


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

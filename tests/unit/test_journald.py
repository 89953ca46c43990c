"""The journal's own protocol: what is sent, and that nothing that is wrong with the journal holds the daemon up."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeofd import journald
from nvmeofd.errors import InUse
from nvmeofd.jobs import Job
from nvmeofd.journald import LONGEST_TEXT, LONGEST_VALUE, JournalSocket, JournalStream, encode, is_journal
from nvmeofd.log import about, bound, log, setup
from nvmeofd.model import OperationKind, Step

NQN = "nqn.2024-01.org.example:one"
NAMES = st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=20)
ANYTHING = st.text(alphabet=st.characters(), max_size=200)  # surrogates, NUL and line ends included


def decode(entry: bytes) -> list[tuple[str, bytes]]:
    """An entry as journald reads it (server_process_native_message() in systemd)."""
    found = []
    while entry:
        line, newline, rest = entry.partition(b"\n")
        assert newline, "the last field has no end"
        name, equals, value = line.partition(b"=")
        if equals:
            entry = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            value = rest[8 : 8 + size]
            assert len(value) == size
            assert rest[8 + size :][:1] == b"\n"
            entry = rest[8 + size + 1 :]
        found.append((name.decode("ascii"), value))
    return found


class TestEncoding:
    @settings(deadline=None)
    @given(st.lists(st.tuples(NAMES, ANYTHING)))
    def test_comes_out_as_it_went_in(self, fields: list[tuple[str, str]]) -> None:
        wanted = [(name, value.encode("utf-8", "backslashreplace")) for name, value in fields]
        assert decode(encode(fields)) == wanted

    def test_no_value_makes_a_field(self) -> None:
        fields = [("NQN", "x\nPRIORITY=0\nMESSAGE=y"), ("JOB", "1")]
        assert [name for name, _ in decode(encode(fields))] == ["NQN", "JOB"]

    @pytest.mark.parametrize("value", ["x" * 60_000, "\n" * 60_000, "\0" * 60_000, "ä" * 60_000, "\udc80" * 60_000])
    def test_what_is_too_long_is_cut(self, value: str) -> None:
        (_, cut), (_, text) = decode(encode([("NQN", value), ("MESSAGE", value)]))
        whole = value.encode("utf-8", "backslashreplace")
        assert whole.startswith(cut)
        assert whole.startswith(text)
        assert LONGEST_VALUE - 4 < len(cut) <= LONGEST_VALUE
        assert LONGEST_TEXT - 4 < len(text) <= LONGEST_TEXT
        cut.decode()

    def test_a_path_is_not_cut(self) -> None:
        path = "/" + "x" * 4094
        assert decode(encode([("STAGING_PATH", path)])) == [("STAGING_PATH", path.encode())]


class TestWhereStderrLeads:
    def test_only_the_very_stream(self) -> None:
        one, other = socket.socketpair()
        with one, other:
            status = os.fstat(one.fileno())
            stream = f"{status.st_dev}:{status.st_ino}"
            assert is_journal(stream, one.fileno())
            assert not is_journal(stream, other.fileno())
            assert not is_journal(f"{status.st_dev}:{status.st_ino + 1}", one.fileno())

    def test_not_a_file(self, tmp_path: Path) -> None:
        with open(tmp_path / "log", "w") as file:
            status = os.fstat(file.fileno())
            assert not is_journal(f"{status.st_dev}:{status.st_ino}", file.fileno())

    @pytest.mark.parametrize("stream", ["", ":", "1", "1:", "a:b", "1:2:3", "9" * 5000 + ":1"])
    def test_nonsense(self, stream: str) -> None:
        one, other = socket.socketpair()
        with one, other:
            assert not is_journal(stream, one.fileno())


class Journal:
    """What journald is to the daemon: a socket for entries, and the other end of the daemon's stderr."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket: socket.socket | None = None
        self.start()

    def start(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    def stop(self) -> None:
        assert self.socket is not None
        self.socket.close()
        os.unlink(self.path)

    def entries(self) -> list[dict[str, str]]:
        found = []
        assert self.socket is not None
        with suppress(BlockingIOError):
            while True:
                found.append({name: value.decode() for name, value in decode(self.socket.recv(1 << 20))})
        return found


def read(stream: socket.socket) -> str:
    with suppress(BlockingIOError):
        return stream.recv(1 << 20, socket.MSG_DONTWAIT).decode()
    return ""


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    yield
    for handler in log.handlers:
        handler.close()
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    found = Journal(tmp_path / "socket")
    monkeypatch.setattr(journald.JournalSocket.__init__, "__defaults__", (found.path,))
    yield found
    assert found.socket is not None
    found.socket.close()


@pytest.fixture
def stderr(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The journal's end of the stream that stderr is."""
    ours, theirs = socket.socketpair()
    status = os.fstat(theirs.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    saved = os.dup(2)
    os.dup2(theirs.fileno(), 2)
    try:
        setup(logging.DEBUG)
        yield ours
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        ours.close()
        theirs.close()


class TestEntries:
    def test_what_every_entry_has(self, journal: Journal, stderr: socket.socket) -> None:
        log.warning("%s is %s", "a", "b")
        (entry,) = journal.entries()
        assert entry.pop("CODE_LINE").isdecimal()
        assert entry == {
            "MESSAGE": "a is b",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "nvmeofd",
            "SYSLOG_FACILITY": "3",
            "CODE_FILE": __file__,
            "CODE_FUNC": "test_what_every_entry_has",
        }
        assert read(stderr) == ""

    def test_a_traceback_is_one_entry(self, journal: Journal, stderr: socket.socket) -> None:
        try:
            raise ValueError("one\ntwo")
        except ValueError:
            log.exception("failed")
        (entry,) = journal.entries()
        assert entry["MESSAGE"].startswith("failed\nTraceback")
        assert entry["MESSAGE"].endswith("ValueError: one\ntwo")

    def test_last_words_go_to_the_stream(self, journal: Journal, stderr: socket.socket) -> None:
        log.critical("cannot start")
        assert journal.entries() == []
        assert read(stderr) == "<2>cannot start\n"

    def test_a_record_that_is_wrong_does_no_harm(self, journal: Journal, stderr: socket.socket) -> None:
        handlers, logging.raiseExceptions = logging.raiseExceptions, False
        try:
            log.info("%d", "no number")
        finally:
            logging.raiseExceptions = handlers
        log.info("next")
        assert [entry["MESSAGE"] for entry in journal.entries()] == ["next"]


class TestFields:
    @staticmethod
    def fields(journal: Journal) -> list[dict[str, str]]:
        names = ("NQN", "STAGING_PATH", "JOB", "OPERATION", "STEP", "ERROR")
        return [{name: entry[name] for name in names if name in entry} for entry in journal.entries()]

    def test_of_a_job_while_it_works_and_after(self, journal: Journal, stderr: socket.socket) -> None:
        async def work(job: Job) -> None:
            job.enter(Step.CONNECTING)
            log.info("said by something that knows no job")
            job.roll_back()
            log.info("taking it back")
            raise InUse("somebody")

        async def main() -> None:
            job = Job(OperationKind.STAGE, NQN, work, timeout=10, staging_path="/srv/a\nb")
            job.number = 7
            error = await job.run()
            log.info("outside")
            log.warning("%s: %s", job, error, extra=about(step=job.failed_step))

        asyncio.run(main())
        job = {"JOB": "7", "OPERATION": "stage", "NQN": NQN, "STAGING_PATH": "/srv/a\nb"}
        assert self.fields(journal) == [
            {**job, "STEP": "connecting"},
            {**job, "STEP": "rolling-back"},
            {},
            {**job, "STEP": "connecting", "ERROR": "org.nvmeofd1.Error.InUse"},
        ]

    def test_what_outlives_a_job_does_not_speak_for_it(self, journal: Journal, stderr: socket.socket) -> None:
        async def main() -> None:
            later: list[asyncio.Task[None]] = []
            ended = asyncio.Event()

            async def outlive() -> None:
                await ended.wait()
                log.info("later")

            async def work(_: Job) -> None:
                later.append(asyncio.ensure_future(outlive()))

            await Job(OperationKind.STAGE, NQN, work, timeout=10).run()
            ended.set()
            await later[0]

        asyncio.run(main())
        assert self.fields(journal) == [{}]

    def test_what_is_said_for_one_record_wins(self, journal: Journal, stderr: socket.socket) -> None:
        with bound(InUse("")):
            log.info("x", extra=about(nqn=NQN, staging_path="/srv/a"))
            log.info("%(name)s", {"name": "y"})
        assert self.fields(journal) == [
            {"NQN": NQN, "STAGING_PATH": "/srv/a", "ERROR": "org.nvmeofd1.Error.InUse"},
            {"ERROR": "org.nvmeofd1.Error.InUse"},
        ]


class TestJournalInTrouble:
    """Were anything here to wait, it would wait for ever."""

    def test_restarted(self, journal: Journal, stderr: socket.socket) -> None:
        log.info("before")
        assert len(journal.entries()) == 1
        journal.stop()
        log.info("meanwhile")
        assert read(stderr) == "<6>meanwhile\n"
        journal.start()
        log.info("after")
        assert [entry["MESSAGE"] for entry in journal.entries()] == ["after"]

    def test_gone_but_for_its_socket(self, journal: Journal, stderr: socket.socket) -> None:
        assert journal.socket is not None
        journal.socket.close()
        log.info("refused")
        assert read(stderr) == "<6>refused\n"
        os.unlink(journal.path)
        journal.start()

    def test_hangs(self, journal: Journal, stderr: socket.socket) -> None:
        """Entries go to its queue, then lines to its stream, then they are lost, which is told."""
        text = "x" * 10_000
        for _ in range(2000):
            log.info(text)
        assert journal.entries()
        while read(stderr):
            pass
        log.info("again")
        last, lost = journal.entries()
        assert last["MESSAGE"] == "again"
        assert lost["PRIORITY"] == "4"

    def test_entry_that_does_not_fit(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(tmp_path / "socket"))
            sender = JournalSocket(str(tmp_path / "socket"))
            with pytest.raises(OSError, match="too long"):
                sender.send(bytes(10 << 20))
            sender.close()

    def test_largest_entry_fits(self, journal: Journal, stderr: socket.socket) -> None:
        """All fields at their longest, under the default of net.core.wmem_default."""
        log.info("\n" * 100_000, extra=about(nqn="\n" * 100_000, staging_path="\n" * 100_000, step="\n" * 100_000))
        (entry,) = journal.entries()
        assert len(entry["MESSAGE"]) == LONGEST_TEXT

    def test_stream_that_nobody_reads_or_has(self) -> None:
        ours, theirs = socket.socketpair()
        stream = JournalStream(theirs.fileno())
        theirs.close()
        with pytest.raises(BlockingIOError):
            stream.send(bytes(64 << 20))
        ours.close()
        with pytest.raises(BrokenPipeError):
            stream.send(b"x")
        stream.close()

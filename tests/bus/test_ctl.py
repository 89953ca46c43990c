"""nvmeofctl against the service: what it asks for, what it shows, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nvmeofd import errors
from nvmeofd.bus.paths import job_path, volume_path
from nvmeofd.ctl.outcome import REFUSALS, Exit
from nvmeofd.errors import Cancelled, NvmeofdError
from nvmeofd.model import FormatPolicy, Step, User, UserKind, VolumeState, VolumeType
from nvmeofd.requests import DisconnectRequest, StageRequest, UnstageRequest
from tests.bus import test_engine
from tests.bus.ctl import ctl, ctl_json, running
from tests.bus.fake import NQN, FakeCore, FakeJob, subsystem, volume
from tests.bus.harness import PrivateBus, ScriptedBus, service
from tests.bus.test_load import Gate

STAGE = ("stage", NQN, "nsid.1", "tcp://127.0.0.1", "/srv/one")
HOSTILE = "/srv/\x1b[2J\n\u202e\\x1b ä漢"


def full(core: FakeCore) -> None:
    """One subsystem with everything that can be shown."""
    core.connect(subsystem())
    core.owned_nqns.add(NQN)
    core.add_volume(volume("/srv/one"))
    core.add_job(7)
    core.users = (
        User(UserKind.MOUNT, "/dev/nvme0n1", "/srv/one"),
        User(UserKind.OPEN, "/dev/nvme0n1p1", "pid 12 \x1b[31mcat"),
    )


class TestWork:
    async def test_every_option_arrives(self, bus: PrivateBus) -> None:
        core = FakeCore()
        async with service(bus, core):
            options = (
                "--type=filesystem", "--fstype=xfs", "--format=if-empty", "--mkfs-options=-L data -K",
                "--mount-options=noatime,nodev", "--min-paths=2", "--host-nqn=nqn.2024-01.org.example:host",
                "--host-id=6c5a4a4e-0000-4000-8000-000000000001", "--ctrl-loss-tmo=-1", "--fast-io-fail-tmo=5",
                "--reconnect-delay=2", "--keep-alive-tmo=3", "--nr-io-queues=4", "--queue-size=64", "--hdr-digest",
                "--data-digest", "--no-fsck", "--timeout=77",
            )  # fmt: skip
            words = ("stage", NQN, "nsid.1", "tcp://127.0.0.1", "tcp://[::1]:4421", "/srv/one")
            done = await ctl(bus, *words, *options)
            assert (done.returncode, done.stdout) == (0, "Staged /dev/nvme0n1 at /srv/one\n")
            assert (await ctl(bus, *STAGE, "--read-only", "--type=block")).returncode == 0
        (one, sender), (two, _) = core.requests
        assert isinstance(one, StageRequest)
        assert isinstance(two, StageRequest)
        assert sender == 0
        assert (one.nqn, str(one.namespace), one.staging_path) == (NQN, "nsid.1", "/srv/one")
        assert [address.host for address in one.addresses] == ["127.0.0.1", "::1"]
        assert (one.type, one.fstype, one.format) == (VolumeType.FILESYSTEM, "xfs", FormatPolicy.IF_EMPTY)
        assert (one.mkfs_options, one.mount_options) == (("-L", "data", "-K"), ("noatime", "nodev"))
        assert (one.read_only, one.fsck, one.min_paths, one.timeout) == (False, False, 2, 77)
        connect = one.connect
        assert (connect.host_nqn, connect.ctrl_loss_tmo, connect.fast_io_fail_tmo) == (
            "nqn.2024-01.org.example:host", -1, 5,
        )  # fmt: skip
        assert (connect.reconnect_delay, connect.keep_alive_tmo) == (2, 3)
        assert (connect.nr_io_queues, connect.queue_size) == (4, 64)
        assert (connect.hdr_digest, connect.data_digest) == (True, True)
        assert (two.type, two.read_only, two.fsck) == (VolumeType.BLOCK, True, True)

    async def test_a_secret_from_a_pipe(self, bus: PrivateBus) -> None:
        """The service refuses secrets by name: that shows which ones have arrived."""
        async with service(bus, FakeCore()):
            secret = "DHHC-1:00:confidential:"
            done = await ctl(bus, *STAGE, "--dhchap-ctrl-secret", stdin=f"{secret}\n")
            assert done.returncode == Exit.USAGE
            assert "dhchap-ctrl-secret" in done.stderr
            assert "confidential" not in done.stdout + done.stderr
            done = await ctl(bus, *STAGE, "--dhchap-secret")
            assert done.returncode == Exit.USAGE
            assert "no secret was given" in done.stderr

    async def test_unstage_and_disconnect(self, bus: PrivateBus) -> None:
        core = FakeCore()
        async with service(bus, core):
            assert (await ctl(bus, "unstage", "/srv/one", "--force", "--timeout=3")).returncode == 0
            done = await ctl(bus, "unstage", "--keep-connected", "/srv/one")
            assert (done.stdout, done.returncode) == ("Unstaged /srv/one\n", 0)
            assert await ctl_json(bus, "unstage", "/srv/one") == {"Disconnected": True}
            done = await ctl(bus, "disconnect", NQN, "--timeout=4")
            assert (done.stdout, done.stderr) == ("Disconnected nvme0, nvme1\n", "")
            assert await ctl_json(bus, "disconnect", NQN) == {"Controllers": ["nvme0", "nvme1"]}
        assert [request for request, _ in core.requests] == [
            UnstageRequest(staging_path="/srv/one", force=True, timeout=3),
            UnstageRequest(staging_path="/srv/one", keep_connected=True),
            UnstageRequest(staging_path="/srv/one"),
            DisconnectRequest(nqn=NQN, timeout=4),
            DisconnectRequest(nqn=NQN),
        ]

    async def test_every_refusal(self, bus: PrivateBus) -> None:
        """Each has its name, its reason, what to do next, and the exit code of its class."""
        core = FakeCore()
        kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, NvmeofdError)]
        async with service(bus, core):
            for kind in kinds:
                if kind is NvmeofdError:
                    continue

                async def refuse(kind: type[NvmeofdError] = kind) -> None:
                    raise kind("because of\nthe \x1b[5mmoon")

                core.work = refuse
                done = await ctl(bus, *STAGE)
                expected = REFUSALS[kind.__name__]
                assert done.returncode == expected.code != 0
                assert done.stdout == ""
                first, second = done.stderr.splitlines()
                assert first == f"nvmeofctl: {kind.__name__}: because of\\nthe \\x1b[5mmoon"
                assert second.startswith("nvmeofctl: ")
                assert "{" not in second
                if "{status}" in expected.hint:
                    assert f"nvmeofctl status {NQN}" in second
                if "{path}" in expected.hint:
                    assert "/srv/one" in second

    async def test_hints_can_be_pasted(self, bus: PrivateBus) -> None:
        core = FakeCore()

        async def refuse() -> None:
            raise errors.UnmountFailed("busy")

        core.work = refuse
        async with service(bus, core):
            done = await ctl(bus, "unstage", "/srv/it's $(here)")
        assert "fuser -vm '/srv/it'\"'\"'s $(here)'" in done.stderr


class TestShowing:
    async def test_status(self, bus: PrivateBus) -> None:
        core = FakeCore()
        full(core)
        async with service(bus, core):
            done = await ctl(bus, "status")
            lines = done.stdout.splitlines()
            assert lines[:-1] == [
                f"{NQN}  nvme-subsys0, connected by nvmeofd",
                "├─path nvme0  tcp://127.0.0.1:4420  live",
                "├─/dev/nvme0n1  uuid.6c5a4a4e-0000-4000-8000-000000000001  1.0 GiB",
                "│ └─staged at /srv/one  ext4  staged",
                "├─open  /dev/nvme0n1p1  pid 12 \\x1b[31mcat",
            ]
            assert lines[-1].startswith("└─job 7  stage /srv/one  queued, ")
            for words in (("status", NQN), ("status", "/srv/one"), ("status", "/srv/one", NQN)):
                assert (await ctl(bus, *words)).stdout.splitlines()[:-1] == lines[:-1]
            (shown,) = await ctl_json(bus, "status")
            plain = await ctl(bus, "status", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
            assert plain.stdout.splitlines()[1].startswith("|-path nvme0")
        assert (shown["NQN"], shown["Connected"], shown["Owned"], shown["Pending"]) == (NQN, True, True, 1)
        assert shown["Controllers"] == [
            {"Name": "nvme0", "Transport": "tcp", "Address": "tcp://127.0.0.1:4420", "State": "live"}
        ]
        assert [one["Size"] for one in shown["Namespaces"]] == [1 << 30]
        assert shown["Users"][1] == {"Kind": "open", "Device": "/dev/nvme0n1p1", "Detail": "pid 12 \x1b[31mcat"}
        assert [one["StagingPath"] for one in shown["Volumes"]] == ["/srv/one"]
        assert [one["Job"] for one in shown["Jobs"]] == [7]

    async def test_status_of_what_is_lost(self, bus: PrivateBus) -> None:
        """A volume whose subsystem is not connected any more."""
        core = FakeCore()
        core.add_volume(volume("/srv/one"))
        core.states["/srv/one"] = VolumeState.LOST
        async with service(bus, core):
            assert (await ctl(bus, "status")).stdout == f"{NQN}  not connected\n└─staged at /srv/one  ext4  lost\n"
            (shown,) = await ctl_json(bus, "status", NQN)
        assert (shown["Connected"], "Users" in shown) == (False, False)

    async def test_users_that_cannot_be_told(self, bus: PrivateBus) -> None:
        core = FakeCore()
        full(core)

        async def fail() -> None:
            raise errors.DisconnectFailed("cannot read sysfs")

        core.work = fail
        async with service(bus, core):
            done = await ctl(bus, "status")
            assert done.returncode == 0
            assert "users cannot be told: cannot read sysfs" in done.stdout
            (shown,) = await ctl_json(bus, "status")
        assert (shown["Users"], shown["UsersError"]) == (None, "cannot read sysfs")

    @pytest.mark.parametrize(
        "words",
        [
            ("status", f"{NQN}2"),
            ("status", "/srv/two"),
            ("show", "/srv/two"),
            ("show", f"{NQN}2"),
            ("show", "8"),
            ("cancel", "8"),
        ],
    )
    async def test_what_is_not_there(self, bus: PrivateBus, words: tuple[str, ...]) -> None:
        core = FakeCore()
        full(core)
        async with service(bus, core):
            done = await ctl(bus, *words)
        assert (done.returncode, done.stdout) == (Exit.NOT_FOUND, "")
        assert "nvmeofctl" in done.stderr.splitlines()[-1]

    async def test_list(self, bus: PrivateBus) -> None:
        core = FakeCore()
        for number in (10, 9):
            core.add_volume(volume(f"/srv/{number}", size=1 << (30 + number)))
        core.states["/srv/9"] = VolumeState.DEGRADED
        async with service(bus, core):
            done = await ctl(bus, "list")
            assert done.stdout.splitlines() == [
                "PATH     DEVICE        TYPE  MODE       SIZE  STATE     SUBSYSTEM",
                f"/srv/10  /dev/nvme0n1  ext4  rw      1.0 TiB  staged    {NQN}",
                f"/srv/9   /dev/nvme0n1  ext4  rw    512.0 GiB  degraded  {NQN}",
            ]
            bare = await ctl(bus, "list", "--no-legend")
            assert [line.split() for line in bare.stdout.splitlines()] == [
                line.split() for line in done.stdout.splitlines()[1:]
            ]
            shown = await ctl_json(bus, "list")
        assert [(one["StagingPath"], one["State"]) for one in shown] == [("/srv/10", "staged"), ("/srv/9", "degraded")]

    async def test_nothing_is_there(self, bus: PrivateBus) -> None:
        async with service(bus, FakeCore()):
            for verb in ("status", "list", "jobs"):
                done = await ctl(bus, verb)
                assert (done.returncode, done.stdout) == (0, "")
                assert done.stderr.startswith("nvmeofctl: no")
                assert await ctl_json(bus, verb) == []
                assert (await ctl(bus, "--quiet", verb)).stderr == ""

    async def test_jobs(self, bus: PrivateBus) -> None:
        core = FakeCore()
        for number in (10, 9):
            core.add_job(number)
        async with service(bus, core):
            lines = (await ctl(bus, "jobs")).stdout.splitlines()
            shown = await ctl_json(bus, "jobs")
        assert lines[0].split() == ["JOB", "OPERATION", "STEP", "SINCE", "UID", "PATH", "SUBSYSTEM"]
        assert [line.split()[:3] for line in lines[1:]] == [["9", "stage", "queued"], ["10", "stage", "queued"]]
        assert [(one["Job"], one["Sender"]) for one in shown] == [(9, 0), (10, 0)]

    async def test_show(self, bus: PrivateBus) -> None:
        core = FakeCore()
        full(core)
        async with service(bus, core):
            manager = (await ctl(bus, "show")).stdout
            assert "HostNQN:  nqn.2024-01.org.example:host\n" in manager
            assert (await ctl(bus, "show", "manager")).stdout == manager
            assert (await ctl_json(bus, "show"))["Counters"] == {"stage-succeeded": 2}
            assert "Size:         1073741824 (1.0 GiB)\n" in (await ctl(bus, "show", "/srv/one")).stdout
            assert "StagedAt:     2023-11-14 22:13:20 UTC\n" in (await ctl(bus, "show", "/srv/one")).stdout
            assert (await ctl_json(bus, "show", NQN))["Controllers"] == [
                ["nvme0", "tcp", "tcp://127.0.0.1:4420", "live"]
            ]
            assert "Controllers: nvme0  tcp  tcp://127.0.0.1:4420  live\n" in (await ctl(bus, "show", NQN)).stdout
            assert (await ctl_json(bus, "show", "7"))["Step"] == "queued"
            words = ("show", "/srv/one", "--property=Size", "--property=ReadOnly")
            assert (await ctl(bus, *words, "--value")).stdout == "1073741824\nno\n"
            assert await ctl_json(bus, *words) == {"Size": 1 << 30, "ReadOnly": False}
            done = await ctl(bus, "show", "--property=Frob")
            assert done.returncode == Exit.USAGE
            assert "HostNQN" in done.stderr

    async def test_hostile_names(self, bus: PrivateBus) -> None:
        """What people see is printable and on one line; what programs see is exact."""
        core = FakeCore()
        core.add_volume(volume(HOSTILE))
        shown = "/srv/\\x1b[2J\\n\\u202e\\\\x1b ä漢"
        async with service(bus, core):
            for words in (("list", "--no-legend"), ("show", HOSTILE, "--property=StagingPath", "--value")):
                done = await ctl(bus, *words)
                assert done.stdout.startswith(shown)
                assert done.stdout.count("\n") == 1
            assert shown in (await ctl(bus, "status")).stdout
            plain = await ctl(bus, "list", "--no-legend", PYTHONIOENCODING="ascii")
            assert plain.stdout.startswith("/srv/\\x1b[2J\\n\\u202e\\\\x1b \\xe4\\u6f22")
            assert (await ctl_json(bus, "list"))[0]["StagingPath"] == HOSTILE
            assert (await ctl_json(bus, "show", HOSTILE))["StagingPath"] == HOSTILE

    async def test_many_objects(self, bus: PrivateBus) -> None:
        """More than the service accepts in one message is still shown."""
        core = FakeCore()
        for number in range(1500):
            core.add_volume(volume(f"/srv/{number:04}"))
        async with service(bus, core):
            assert len(await ctl_json(bus, "list")) == 1500

    async def test_nobody_reads(self, bus: PrivateBus) -> None:
        core = FakeCore()
        for number in range(1000):
            core.add_volume(volume(f"/srv/{number}"))
        read_end, write_end = os.pipe()
        os.close(read_end)
        async with service(bus, core), running(bus, "list", stdout=write_end) as process:
            os.close(write_end)
            _, err = await process.communicate()
        assert (process.returncode, err) == (Exit.BROKEN_PIPE, b"")


class TestProgress:
    async def test_plain_lines_and_the_end(self, bus: PrivateBus) -> None:
        async with test_engine.running(bus) as host:
            words = ("stage", test_engine.NQN, f"uuid.{test_engine.UUIDS[0]}", *test_engine.ADDRESSES, "/srv/one")
            done = await ctl(bus, *words, "--format=if-empty")
            assert done.returncode == 0, done.stderr
            lines = done.stderr.splitlines()
            assert "nvmeofctl: job 1: formatting" in lines
            assert all(line.startswith("nvmeofctl: job 1: ") for line in lines)
            quiet = await ctl(bus, *words, "--quiet")
            assert (quiet.returncode, quiet.stderr) == (0, "")
            await host.unstage("/srv/one")

    async def test_on_a_terminal(self, bus: PrivateBus) -> None:
        core = FakeCore()
        gate = Gate(core)
        master, slave = os.openpty()
        seen = ""

        async def until(text: str) -> None:
            nonlocal seen
            while text not in seen:
                seen += (await asyncio.to_thread(os.read, master, 4096)).decode()

        async with service(bus, core), running(bus, *STAGE, stderr=slave, env={"TERM": "xterm"}) as process:
            os.close(slave)
            await gate.until(waiting=1)
            job = core.add_job(7)
            job.step = Step.FORMATTING
            core.tell().job_changed(job)
            await until("stage /srv/one: formatting (0 s; job 7)")
            await until("formatting (1 s; job 7)")  # the clock goes on by itself
            core.finish_job(7)
            gate.opened.set()
            await process.communicate()
        with suppress(OSError):  # EIO: all is read, and nobody has the other end
            while True:
                seen += os.read(master, 4096).decode()
        os.close(master)
        assert process.returncode == 0
        assert seen.endswith("\r\x1b[K")
        assert "\n" not in seen

    async def test_interrupted(self, bus: PrivateBus) -> None:
        """The operation goes on, and it is said how to stop it."""
        core = FakeCore()
        gate = Gate(core)
        async with service(bus, core), running(bus, *STAGE) as process:
            await gate.until(waiting=1)
            core.add_job(7)
            assert process.stderr is not None
            assert await process.stderr.readline() == b"nvmeofctl: job 7: queued\n"
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
            assert (process.returncode, out) == (Exit.INTERRUPTED, b"")
            assert b"the operation goes on" in err
            assert b"nvmeofctl cancel 7" in err
            gate.opened.set()
            await gate.until(done=1)
            assert not core.jobs[7].cancelled

    async def test_the_daemon_stops_meanwhile(self, bus: PrivateBus) -> None:
        core = FakeCore()
        gate = Gate(core)
        async with service(bus, core) as serving, running(bus, *STAGE) as process:
            await gate.until(waiting=1)
            await serving.close()
            _, err = await process.communicate()
            gate.opened.set()
            await gate.until(done=1)
        assert process.returncode == Exit.TRY_LATER
        assert b"ShuttingDown" in err

    async def test_the_daemon_ends_meanwhile(self, bus: PrivateBus) -> None:
        core = FakeCore()
        gate = Gate(core)
        async with service(bus, core) as serving, running(bus, *STAGE) as process:
            await gate.until(waiting=1)
            serving._connection.fail("killed")
            _, err = await process.communicate()
            gate.opened.set()
            await gate.until(done=1)
        assert process.returncode == Exit.UNREACHABLE
        assert b"finishes or undoes" in err
        assert f"nvmeofctl status {NQN}".encode() in err

    async def test_the_bus_ends_meanwhile(self, bus: PrivateBus) -> None:
        core = FakeCore()
        gate = Gate(core)
        async with service(bus, core), running(bus, *STAGE) as process:
            await gate.until(waiting=1)
            bus.stop()
            _, err = await process.communicate()
            gate.opened.set()
            await gate.until(done=1)
        assert process.returncode == Exit.UNREACHABLE
        assert b"the bus is gone" in err


class TestCancel:
    async def cancel(self, bus: PrivateBus, core: FakeCore, error: NvmeofdError | None) -> tuple[int | None, str, str]:
        job = core.add_job(7)
        asked = asyncio.Event()
        job.cancel = asked.set  # type: ignore[method-assign]
        async with service(bus, core), running(bus, "cancel", "7") as process:
            await asked.wait()
            core.finish_job(7, error)
            out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    async def test_cancelled(self, bus: PrivateBus) -> None:
        code, out, _ = await self.cancel(bus, FakeCore(), Cancelled("cancelled in step mounting"))
        assert (code, out) == (0, "Job 7 has ended: Cancelled: cancelled in step mounting\n")

    async def test_too_late(self, bus: PrivateBus) -> None:
        code, out, err = await self.cancel(bus, FakeCore(), None)
        assert (code, out) == (Exit.FAILED, "")
        assert "has succeeded" in err

    @pytest.mark.parametrize("word", ["seven", "-1", "\u0667", "7" * 30, ""])
    async def test_no_number(self, bus: PrivateBus, word: str) -> None:
        done = await ctl(bus, "cancel", word)
        assert done.returncode == Exit.USAGE


class TestMonitor:
    async def test_objects_and_jobs(self, bus: PrivateBus) -> None:
        core = FakeCore()
        full(core)
        async with service(bus, core), running(bus, "monitor", "--json") as process:
            first = await self.next(process)
            assert (first["Event"], first["Running"], first["Version"]) == ("daemon", True, "0.1.0")
            core.jobs[7].step = Step.MOUNTING
            core.tell().job_changed(core.jobs[7])
            changed = await self.next(process)
            assert (changed["Event"], changed["Kind"], changed["Name"]) == ("changed", "job", "7")
            assert changed["Properties"] == {"Step": "mounting"}
            core.finish_job(7, errors.Busy("no"))
            ended = await self.next(process)
            assert (ended["Event"], ended["Success"], ended["Error"], ended["Message"]) == (
                "completed", False, "org.nvmeofd1.Error.Busy", "no",
            )  # fmt: skip
            gone = await self.next(process)
            assert (gone["Event"], gone["Path"]) == ("removed", job_path(7))
            core.add_volume(volume(HOSTILE))
            added = await self.next(process)
            assert (added["Event"], added["Kind"], added["Name"]) == ("added", "volume", HOSTILE)
            assert added["Properties"]["State"] == "staged"
            core.tell().volume_removed(HOSTILE)
            gone = await self.next(process)
            assert (gone["Event"], gone["Name"], gone["Path"]) == ("removed", HOSTILE, volume_path(HOSTILE))
            process.send_signal(signal.SIGINT)
            await process.communicate()
            assert process.returncode == Exit.INTERRUPTED

    async def test_for_people(self, bus: PrivateBus) -> None:
        core = FakeCore()
        async with service(bus, core), running(bus, "monitor") as process:
            assert process.stdout is not None
            assert (await process.stdout.readline()).endswith(b"  nvmeofd 0.1.0 is running\n")
            core.add_volume(volume(HOSTILE))
            line = (await process.stdout.readline()).decode()
            assert "  added      volume /srv/\\x1b[2J\\n\\u202e\\\\x1b ä漢  NQN=" in line
            assert '  MountOptions=["noatime"]  ReadOnly=false  ' in line

    async def test_the_daemon_comes_and_goes(self, bus: PrivateBus) -> None:
        async with running(bus, "monitor", "--json") as process:
            first = await self.next(process)
            assert (first["Event"], first["Running"]) == ("daemon", False)
            async with service(bus, FakeCore()):
                assert (await self.next(process))["Running"] is True
            assert (await self.next(process))["Running"] is False
            core = FakeCore()
            async with service(bus, core):
                assert (await self.next(process))["Running"] is True
                core.add_volume(volume("/srv/one"))
                assert (await self.next(process))["Name"] == "/srv/one"
            bus.stop()
            _, err = await process.communicate()
            assert process.returncode == Exit.UNREACHABLE
            assert b"bus is gone" in err

    async def next(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(await process.stdout.readline())
        assert found["Time"] > 1_700_000_000_000_000
        return found


class TestUnreachable:
    async def test_no_bus(self) -> None:
        for words in (("list",), STAGE, ("monitor",)):
            done = await ctl("unix:path=/nowhere/socket", *words)
            assert done.returncode == Exit.UNREACHABLE
            assert "systemctl status dbus" in done.stderr

    async def test_a_bus_that_says_nothing(self) -> None:
        """Whoever presses Tab is not kept waiting for ever."""

        async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read()

        async with ScriptedBus(say_nothing) as scripted:
            done = await ctl(scripted.address, "__complete", "--", "unstage", "")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    async def test_not_installed(self, bus: PrivateBus) -> None:
        for words in (("list",), STAGE, ("cancel", "7")):
            done = await ctl(bus, *words)
            assert done.returncode == Exit.UNREACHABLE
            assert "install the package nvmeofd" in done.stderr

    async def test_who_only_looks_starts_nothing(self, tmp_path: Path) -> None:
        """The bus would start the service, which notes that and fails."""
        started = tmp_path / "started"
        (tmp_path / "org.nvmeofd1.service").write_text(
            f'[D-BUS Service]\nName=org.nvmeofd1\nUser=root\nExec=/bin/sh -c "touch {started}; exit 1"\n'
        )
        with PrivateBus(extra_policy=f"<servicedir>{tmp_path}</servicedir>") as bus:
            for words in (("list",), ("status",), ("show",), ("jobs",), ("cancel", "7")):
                done = await ctl(bus, *words)
                assert done.returncode == Exit.UNREACHABLE
                assert "nvmeofd is not running" in done.stderr
                assert "systemctl start nvmeofd" in done.stderr
            done = await ctl(bus, "__complete", "--", "unstage", "")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert not started.exists()
            done = await ctl(bus, *STAGE)
            assert started.exists()
            assert done.returncode == Exit.UNREACHABLE
            assert "systemctl status nvmeofd" in done.stderr

    async def test_denied(self) -> None:
        policy = '<policy context="mandatory"><deny send_destination="org.nvmeofd1"/></policy>'
        with PrivateBus(extra_policy=policy) as bus:
            async with service(bus, FakeCore()):
                for words in (("list",), STAGE, ("monitor",), ("show", "7"), ("status",)):
                    done = await ctl(bus, *words)
                    assert (done.returncode, done.stdout) == (Exit.DENIED, "")
                    assert "sudo" in done.stderr
                done = await ctl(bus, "__complete", "--", "unstage", "")
                assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_the_main_job(bus: PrivateBus) -> None:
    """With the real core, on a simulated host."""
    async with test_engine.running(bus) as host:
        nqn = test_engine.NQN
        for number in (0, 1):
            uuid = test_engine.UUIDS[number]
            words = ("stage", nqn, uuid, *test_engine.ADDRESSES, f"/srv/{number}", "--format=if-empty")
            assert (await ctl_json(bus, *words))["Volume"] == volume_path(f"/srv/{number}")
        (shown,) = await ctl_json(bus, "status", "/srv/0")
        assert [one["State"] for one in shown["Controllers"]] == ["live", "live"]
        assert {one["Detail"] for one in shown["Users"]} >= {"/srv/0", "/srv/1"}
        refused = await ctl(bus, "disconnect", nqn)
        assert refused.returncode == Exit.IN_USE
        assert f"nvmeofctl status {nqn}" in refused.stderr
        done = await ctl(bus, "unstage", "/srv/2")
        assert (done.stdout, done.stderr, done.returncode) == ("Nothing is staged at /srv/2\n", "", 0)
        done = await ctl(bus, "unstage", "/srv/0")
        assert f"stays connected: nvmeofctl status {nqn} shows who uses it" in done.stderr
        again = await ctl(bus, "stage", nqn, "nsid.1", test_engine.ADDRESSES[0], "/srv/1")
        assert again.returncode == Exit.PLACE
        done = await ctl(bus, "unstage", "/srv/1")
        assert "not connected any more" in done.stderr
        assert not host.world.connected(nqn)
        assert (await ctl(bus, "disconnect", nqn)).stdout == f"{nqn} was not connected\n"
        assert await ctl_json(bus, "list") == []


def test_a_job_of_these_tests_is_that_of_the_call() -> None:
    """What the fake core announces is what nvmeofctl looks for."""
    job = FakeJob(7)
    assert (str(job.operation), job.nqn, job.staging_path) == ("stage", STAGE[1], STAGE[-1])

"""The harness itself: what the other tests on a real kernel take for granted."""

from __future__ import annotations

import errno
import time

import pytest

from .guest import bus, service, target, users
from .harness import CommandFailed, Guest, GuestCallError, GuestDied, GuestTimeout


class TestCommands:
    def test_output_status_and_input(self, kernel: Guest) -> None:
        result = kernel.run(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin=b"\x00\xff\n", check=False)
        assert (result.rc, result.stdout, result.stderr) == (3, b"\x00\xff\n", b"oops\n")

    def test_failure_raises_with_output(self, kernel: Guest) -> None:
        with pytest.raises(CommandFailed, match="no such thing"):
            kernel.run("echo no such thing >&2; false")

    def test_deadline_ends_the_whole_group(self, kernel: Guest) -> None:
        with pytest.raises(GuestTimeout, match="begun"):
            kernel.run("echo begun; sleep 4711 | cat", timeout=0.5)
        assert kernel.run(["pgrep", "-f", "sleep 4711"], check=False).rc == 1

    def test_environment_and_folder(self, kernel: Guest) -> None:
        assert kernel.run('echo "$PWD $COLOUR"', cwd="/tmp", env={"COLOUR": "green"}).out == "/tmp green\n"

    def test_files_are_bytes(self, kernel: Guest) -> None:
        content = bytes(range(256)) * 5000
        kernel.write("/tmp/new/file", content, mode=0o600)
        assert kernel.read("/tmp/new/file") == content
        assert kernel.run(["stat", "-c", "%a", "/tmp/new/file"]).out == "600\n"


class TestCalls:
    def test_namespace_lasts(self, kernel: Guest) -> None:
        kernel.exec("kept = [1]")
        assert kernel.exec("kept.append(2); result = kept") == [1, 2]

    def test_error_has_type_and_errno(self, kernel: Guest) -> None:
        with pytest.raises(GuestCallError) as caught:
            kernel.call(users.opener, "nobody", "/nonexistent")
        assert caught.value.kind == "FileNotFoundError"
        assert caught.value.errno == errno.ENOENT
        assert "users.py" in caught.value.traceback

    def test_calls_run_side_by_side(self, kernel: Guest) -> None:
        """One call waits for what another one causes."""
        kernel.write("/tmp/obstacle", b"")
        waiting = kernel.submit(service.wait_removed, "/tmp/obstacle", timeout=30.0)
        kernel.run(["rm", "/tmp/obstacle"])
        waiting.result(timeout=60.0)


class TestSnapshots:
    def test_restore_takes_the_clock_back(self, kernel: Guest) -> None:
        """Else all the time since the snapshot would pass at once, and watchdogs would go off."""
        kernel.snapshot("clock")
        before = kernel.exec("import time; result = time.monotonic()")
        kernel.run(["sleep", "20"])  # what passes, and is to be taken back
        kernel.restore("clock")
        assert kernel.exec("import time; result = time.monotonic()") < before + 20.0

    def test_restore_brings_back_files_processes_memory_and_time(self, kernel: Guest) -> None:
        kernel.exec("memory = 'before'")
        kernel.write("/tmp/state", b"before")
        kernel.snapshot("before")
        kernel.exec("memory = 'after'")
        kernel.write("/tmp/state", b"after")
        kernel.run("sleep 4712 >/dev/null 2>&1 &")
        kernel.run(["date", "--set", "2001-01-01"])
        kernel.restore("before")
        assert kernel.exec("result = memory") == "before"
        assert kernel.read("/tmp/state") == b"before"
        assert kernel.run(["pgrep", "-f", "sleep 4712"], check=False).rc == 1
        assert abs(kernel.exec("import time; result = time.time()") - time.time()) < 5.0

    def test_request_under_way_fails_at_once(self, kernel: Guest) -> None:
        kernel.snapshot("quiet")
        future = kernel.submit(bus.wait_owner, True, timeout=300.0)
        kernel.restore("quiet")
        assert "restored" in str(future.exception(timeout=5.0))

    def test_dead_guest_is_reported_and_comes_back(self, kernel: Guest) -> None:
        kernel.snapshot("alive")
        with pytest.raises(GuestDied, match="Kernel panic"):
            kernel.run("echo c > /proc/sysrq-trigger")
        with pytest.raises(GuestDied):
            kernel.run(["true"])
        kernel.rewind()
        assert kernel.run(["echo", "back"]).out == "back\n"


class TestBus:
    """The bus client against the bus itself."""

    def test_call_and_error(self, kernel: Guest) -> None:
        names = kernel.call(bus.call, "/", bus.DBUS, "ListNames", destination=bus.DBUS)
        assert names["signature"] == "as"
        assert bus.DBUS in names["body"][0]
        unknown = kernel.call(bus.call, "/", bus.DBUS, "Nothing", destination=bus.DBUS)
        assert unknown["error"] == "org.freedesktop.DBus.Error.UnknownMethod"

    def test_nested_types_come_back(self, kernel: Guest) -> None:
        """systemd answers with arrays of structures and variants of every kind."""
        manager = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "ListUnitsByNames", "as")
        reply = kernel.call(bus.call, *manager, [["dbus.service"]], destination="org.freedesktop.systemd1")
        assert reply["signature"] == "a(ssssssouso)"
        assert reply["body"][0][0][0] == "dbus.service"
        properties = kernel.call(
            bus.call,
            reply["body"][0][0][6],
            bus.PROPERTIES,
            "GetAll",
            "s",
            [""],
            destination="org.freedesktop.systemd1",
        )
        assert properties["body"][0]["Id"] == "dbus.service"

    def test_variants_of_every_kind_are_understood(self, kernel: Guest) -> None:
        start = (
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
            "StartTransientUnit",
            "ssa(sv)a(sa(sv))",
        )
        command = {"type": "a(sasb)", "value": [["/bin/true", ["/bin/true"], False]]}
        settings = [["Description", "variants"], ["RemainAfterExit", True], ["ExecStart", command]]
        settings.append(["TimeoutStopUSec", {"type": "t", "value": 5_000_000}])
        body = ["variants.service", "fail", settings, []]
        reply = kernel.call(bus.call, *start, body, destination="org.freedesktop.systemd1")
        assert reply["error"] == "", reply["message"]
        shown = kernel.run("systemctl show -p Description -p TimeoutStopUSec variants.service").out
        assert shown.splitlines() == ["TimeoutStopUSec=5s", "Description=variants"]
        kernel.run(["systemctl", "stop", "variants.service"])

    def test_signal_and_other_user(self, kernel: Guest) -> None:
        since = kernel.call(bus.subscribe, f"type='signal',sender='{bus.DBUS}'")
        name = kernel.call(bus.open_as, "nobody", 65534)
        found: list[object] = []
        while found != [name, "", name]:  # others come and go, too; without it the wait ends in an error
            signal = kernel.call(bus.wait_signal, "NameOwnerChanged", since=since, timeout=10.0)
            found, since = signal["body"], signal["number"] + 1
        asked = kernel.call(bus.call, "/", bus.DBUS, "GetConnectionUnixUser", "s", [name], destination=bus.DBUS)
        assert asked["body"] == [65534]
        denied = kernel.call(
            bus.call, "/", bus.DBUS, "RequestName", "su", [bus.DAEMON, 4], destination=bus.DBUS, label="nobody"
        )
        assert denied["error"] == "org.freedesktop.DBus.Error.AccessDenied"
        kernel.call(bus.close_all)

    def test_nonsense_ends_that_connection_only(self, kernel: Guest) -> None:
        assert not kernel.call(bus.send_hex, "ff" * 32, "wild")
        assert kernel.call(bus.call, "/", bus.DBUS, "GetId", destination=bus.DBUS)["error"] == ""
        kernel.call(bus.close_all)


def test_object_path_labels() -> None:
    assert bus.encode_label("/srv/v-1") == "_2fsrv_2fv_2d1"
    assert bus.encode_label("1st") == "_31st"
    assert bus.encode_label("ü") == "_c3_bc"
    assert bus.encode_label("") == "_"


def test_devices_of_the_target_hang_and_fail(kernel: Guest) -> None:
    path = kernel.call(target.add_device, "frail")
    read = ["dd", f"if={path}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]
    kernel.run(read)
    kernel.call(target.hang_device, "frail")
    with pytest.raises(GuestTimeout):
        kernel.run(read, timeout=1.0)
    kernel.call(target.resume_device, "frail")
    kernel.call(target.fail_device, "frail")
    assert "Input/output error" in kernel.run(read, check=False).err
    kernel.call(target.remove_device, "frail")

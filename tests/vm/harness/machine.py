"""One QEMU process: its command line, its control socket, its console, its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from .accel import cpu_model, processors
from .errors import GuestDied, GuestError, GuestTimeout
from .host import tool
from .image import Image

MEMORY_MIB = 2048
CONTROL_SECONDS = 120.0  # a snapshot writes or reads the guest's memory

# Of the machine, in its firmware (DMI).
MACHINE_UUID = "b3a1c7de-52f4-4e0b-9c86-7d20f1a94e35"
# panic=-1 with -no-reboot turns a kernel crash into the end of QEMU, which a test reports at once instead of hanging.
# From nokaslr on: what costs much under emulation, and is nothing that is tested. Above all addresses that differ from
# process to process, where QEMU finds little of what it translated before (three quarters of the time that a small
# program takes); security modules; memory that is zeroed, checked and counted. tsc=unstable: a snapshot does not bring
# the time stamp counter back, so with it as the clock all the time since would pass at once, and watchdogs go off.
KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 panic=-1 oops=panic quiet loglevel=4 systemd.show_status=0 systemd.log_color=0 "
    "nokaslr norandmaps mitigations=off lsm=capability audit=0 init_on_alloc=0 hardened_usercopy=off "
    "cgroup.memory=nokmem,nosocket nowatchdog tsc=unstable random.trust_cpu=on"
)


def qemu_arguments(image: Image, accel: str) -> list[str]:
    """The machine itself. A snapshot loads only into the very same one, so this is part of a snapshot's key."""
    return [
        "-accel", accel, "-machine", "q35", "-cpu", cpu_model(accel),
        "-smp", str(processors(accel)), "-m", str(MEMORY_MIB), "-uuid", MACHINE_UUID,
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", KERNEL_ARGUMENTS,
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci,id=channels",
        "-device", "virtserialport,bus=channels.0,chardev=agent,name=agent",
        "-serial", "chardev:console",
    ]  # fmt: skip


class Machine:
    """A running QEMU on a disk that has the image as its backing file."""

    def __init__(self, image: Image, disk: Path, *, accel: str, folder: Path, snapshot: str | None = None) -> None:
        self.console = folder / "console.log"
        self.stderr = folder / "qemu.log"
        self.agent, agent_end = socket.socketpair()
        self._control, control_end = socket.socketpair()
        self._lock = threading.Lock()
        self._received = b""
        argv = [_setpriv(), "--pdeathsig", "KILL", tool("qemu-system-x86_64"), *qemu_arguments(image, accel)]
        argv += ["-drive", f"file={disk},format=qcow2,if=virtio,cache=unsafe,aio=threads,discard=unmap"]
        argv += ["-chardev", f"socket,id=agent,fd={agent_end.fileno()}"]
        argv += ["-chardev", f"socket,id=control,fd={control_end.fileno()}", "-mon", "control,mode=control"]
        argv += ["-chardev", f"file,id=console,path={self.console}"]
        if snapshot is not None:
            argv += ["-loadvm", snapshot]
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                pass_fds=[agent_end.fileno(), control_end.fileno()],
            )  # fmt: skip
        agent_end.close()
        control_end.close()
        try:
            self._answer(CONTROL_SECONDS)  # the greeting
            self.control("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def control(self, command: str, **arguments: Any) -> Any:
        """One QMP command and its answer."""
        with self._lock:
            try:
                self._control.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            except OSError as error:
                raise GuestDied(self.explain(f"QEMU does not take {command}")) from error
            answer = self._answer(CONTROL_SECONDS)
        if "error" in answer:
            raise GuestError(f"QEMU refuses {command}: {answer['error'].get('desc')}")
        return answer["return"]

    def _answer(self, timeout: float) -> dict[str, Any]:
        self._control.settimeout(timeout)
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                message: dict[str, Any] = json.loads(line)
                if "event" not in message:
                    return message
                continue
            try:
                received = self._control.recv(65536)
            except TimeoutError as error:
                raise GuestTimeout(self.explain(f"QEMU did not answer within {timeout} s")) from error
            except OSError:
                received = b""
            if not received:
                raise GuestDied(self.explain("QEMU ended"))
            self._received += received

    def _monitor(self, line: str) -> None:
        """A human monitor command: every QEMU has savevm and loadvm there. It prints only when it fails."""
        printed = str(self.control("human-monitor-command", **{"command-line": line})).strip()
        if printed:
            raise GuestError(self.explain(f"QEMU: {line}: {printed}"))

    def save(self, name: str) -> None:
        self._monitor(f"savevm {name}")

    def load(self, name: str) -> None:
        self._monitor(f"loadvm {name}")

    def explain(self, what: str) -> str:
        """The error text: what happened, and the last that the guest and QEMU printed."""
        try:
            code = self.process.wait(timeout=1.0)  # after its sockets close, QEMU is about to end
            state = f"QEMU ended with status {code}"
        except subprocess.TimeoutExpired:
            state = "QEMU is running"
        return f"{what} ({state})\n{self.tail()}"

    def tail(self, lines: int = 60) -> str:
        parts = []
        for title, path in (("guest console", self.console), ("QEMU", self.stderr)):
            text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
            if text:
                parts.append("\n".join([f"--- {title} ({path}) ---", *text]))
        return "\n".join(parts) or "(nothing on the guest's console)"

    def wait_end(self, timeout: float) -> None:
        """Wait until QEMU ends because the guest did."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise GuestTimeout(self.explain(f"the guest did not end within {timeout} s")) from error

    def close(self) -> None:
        """End QEMU. The disk is scratch, so there is nothing to shut down cleanly."""
        self.process.kill()
        self.process.wait()
        for end in (self.agent, self._control):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _setpriv() -> str:
    """setpriv ends QEMU together with the tests, however those end; util-linux is on every Debian machine."""
    found = shutil.which("setpriv", path=f"{os.environ.get('PATH', os.defpath)}:/usr/bin")
    if found is None:
        raise GuestError("setpriv is not installed; it is in the Debian package util-linux")
    return found


def scratch_folder(base: Path) -> Path:
    """A folder for one run's disk and logs; those of runs that were killed are removed on the way."""
    runs = base / "runs"
    runs.mkdir(exist_ok=True)
    for left in runs.iterdir():
        pid = left.name.partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=runs))
